"""Which workspace a script means: named by an argument, a variable, or Azure ML's `config.json`.

Azure ML looks for `.azureml/config.json` in a folder and all above it, then in the same way for `config.json`; so do
we. Of the file only `workspace_name` counts: subscription and resource group are matters of the registry's block.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from prefect_environments.core.errors import DefinitionError, SpecificationError

VARIABLE = "PREFECT_ENVIRONMENTS_WORKSPACE"
"""Names a block, or the path of a config file or of the folder to search from."""
DEFAULT = "default"
RULE = "a workspace_name becomes a block's name in lower case, with '-' for all that is no letter or digit"

_FILE = "config.json"
_BLOCK = re.compile(r"[a-z0-9-]+")


@dataclass(frozen=True, slots=True)
class Choice:
    """The name of a Workspace block, and how it was found."""

    block: str
    said_by: str
    tried: tuple[str, ...]
    """What was looked at before, each with its outcome."""

    def missing(self) -> DefinitionError:
        """The error for a block that is not there."""
        tried = "".join(f"\n- {line}" for line in (*self.tried, f"{self.said_by}: the block {self.block!r}"))
        return DefinitionError(
            f"there is no Environments Workspace block {self.block!r}. Tried, in this order:{tried}\n"
            f'Make the block in the UI or by Workspace(…).save("{self.block}"), or name another: '
            f'Workspace.from_config("NAME"), or the variable {VARIABLE}. For work without a server there is '
            f"Workspace.local(FOLDER). Note that {RULE}"
        )


def choose(
    path: str | Path | None = None,
    *,
    file_name: str | None = None,
    environ: Mapping[str, str] = os.environ,
    folder: Path | None = None,
) -> Choice:
    """The block that is meant. `path` is a block's name or, with a slash or a dot in it, a config file or a folder to
    search from; `folder` is where searching begins without one (by default the working directory).

    Raises `DefinitionError` for a path where nothing is, `SpecificationError` for a file that cannot be read.
    """
    if path is not None and str(path) != "":
        return _given(path, "the argument", file_name, ())
    tried = ["the argument: none was given"]
    if named := environ.get(VARIABLE, ""):
        return _given(named, f"the variable {VARIABLE}", file_name, tuple(tried))
    tried.append(f"the variable {VARIABLE}: it is not set")
    start = (folder or Path.cwd()).absolute()
    if found := _search(start, file_name, tried):
        return found
    return Choice(DEFAULT, "the default", tuple(tried))


def block_name(workspace_name: str) -> str:
    """`My_Team` becomes `my-team`; empty if no letter or digit is in it."""
    return re.sub(r"[^a-z0-9]+", "-", workspace_name.lower()).strip("-")


def _given(path: str | Path, said_by: str, file_name: str | None, tried: tuple[str, ...]) -> Choice:
    if isinstance(path, str) and _BLOCK.fullmatch(path):
        hint = f" (the folder or file of that name is meant by ./{path})" if Path(path).exists() else ""
        return Choice(path, f"{said_by}{hint}", tried)
    place = Path(path).expanduser().absolute()
    if place.is_file():
        return Choice(_read(place), f"{said_by}, by {place}", tried)
    if not place.is_dir():
        raise DefinitionError(
            f"{said_by} is {str(path)!r}, which is neither a block's name (lower-case letters, digits and '-') nor a "
            "file or folder that exists"
        )
    looked = [*tried]
    if found := _search(place, file_name, looked):
        return found
    raise DefinitionError(
        f"{said_by} names the folder {place}, but: {looked[-1]}. Give the path of the file, or a block's name"
    )


def _search(start: Path, file_name: str | None, tried: list[str]) -> Choice | None:
    """The first file upwards that names a workspace; what has the name and doesn't is noted in `tried`."""
    name, passed = file_name or _FILE, ""
    for place in _places(start, name):
        if not place.is_file():
            continue
        # many tools keep a config.json that is not Azure ML's; in .azureml, or under a name that was given, it is
        if place.parent.name != ".azureml" and file_name is None and not _names_workspace(place):
            passed += f"; {place} has no workspace_name"
            continue
        return Choice(_read(place), str(place), tuple(tried))
    tried.append(f"no .azureml/{name} or {name} names a workspace in {start} or above it{passed}")
    return None


def _places(start: Path, name: str) -> Iterator[Path]:
    folders = (start, *start.parents)
    yield from (folder / ".azureml" / name for folder in folders)
    yield from (folder / name for folder in folders)


def _names_workspace(place: Path) -> bool:
    try:
        return "workspace_name" in _load(place)
    except SpecificationError:
        return False


def _read(place: Path) -> str:
    name = _load(place).get("workspace_name")
    if not isinstance(name, str) or not block_name(name):
        raise SpecificationError(
            f"{place} has no workspace_name with a letter or digit in it; the file that Azure ML's studio offers for "
            "download has one"
        )
    return block_name(name)


def _load(place: Path) -> dict[str, object]:
    try:
        data = json.loads(place.read_text("utf-8-sig"))
    except OSError as error:
        raise SpecificationError(f"{place} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):  # not its words: they quote the file
        raise SpecificationError(f"{place} is not JSON; expected Azure ML's config.json") from None
    if not isinstance(data, dict):
        raise SpecificationError(f"{place} is not a JSON object; expected Azure ML's config.json")
    return data

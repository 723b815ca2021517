"""Conda environment files (conda's documentation, "Create env file manually"), read as they are written.

Match specs stay text: what `python=3.7.*` means is the resolver's business, and nothing is replaced here.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from prefect_environments.core.errors import SpecificationError
from prefect_environments.core.formats import pip_section, yaml_text
from prefect_environments.core.formats.requirements import credentials
from prefect_environments.core.formats.yaml_text import Items, Table, Text, Value, refused
from prefect_environments.core.redact import MASK

KEYS = ("name", "channels", "dependencies", "prefix", "variables")

_SPEC = re.compile(r"[A-Za-z0-9_*.][\x21-\x7e]*(?: [\x21-\x7e]+)*|[a-z]+://[\x21-\x7e]+(?: [\x21-\x7e]+)*")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s\[]*")
_TOKEN = re.compile(r"/t/[^/\s]+(?:/|$)")
_REQUIREMENT = re.compile(r"--?[a-z]|[A-Za-z0-9][\w.-]*(?:\[[^\]]*\])?\s*(?:$|[=<>!~;@#])|(?:git|hg)\+")


@dataclass(frozen=True, slots=True)
class CondaSpecification:
    """What a conda environment file asks for."""

    name: str = ""
    channels: tuple[str, ...] = ()
    """In their order: names, URLs, folders, `nodefaults`."""
    dependencies: tuple[str, ...] = ()
    """Match specs as written, runs of white space made one space."""
    pip: tuple[str, ...] = ()
    """Requirement lines of all pip sections, options among them; files are named by absolute paths."""
    prefix: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = field(default=(), compare=False)


def read(path: str | Path, *, check_files: bool = True) -> CondaSpecification:
    """The specification in a file. `-r` lines of its pip section count from the file's folder.

    Raises `SpecificationError` or `RequirementsError`, naming file, line and reason. `check_files` is as in
    `pip_section.read`.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            content = file.read(yaml_text.FILE_LIMIT + 1)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else "") or "it is no usable path"
        raise SpecificationError(f"cannot read the conda file {str(path)!r:.300}: {reason}; correct the path") from None
    return parse(content, str(path), folder=path.absolute().parent, check_files=check_files)


def parse(
    content: str | bytes | Table, origin: str, *, folder: Path | None = None, check_files: bool = True
) -> CondaSpecification:
    """The same for a file's content, or for a part of another YAML document. Without `folder`, pip lines that name
    files are refused."""
    document = content if isinstance(content, Table) else _document(content, origin)
    return _Reader(origin, folder, check_files).specification(document)


def write(specification: CondaSpecification) -> str:
    """The specification as YAML that `parse` reads as an equal one, and every other reader as text."""
    dependencies: list[object] = list(map(str, specification.dependencies))
    if specification.pip:
        dependencies.append({"pip": list(map(str, specification.pip))})
    document: dict[str, object] = {
        "name": specification.name,
        "channels": list(map(str, specification.channels)),
        "dependencies": dependencies,
        "prefix": specification.prefix,
        "variables": {str(name): str(value) for name, value in specification.variables.items()},
    }
    kept = {key: value for key, value in document.items() if value or key == "dependencies"}
    return yaml.safe_dump(kept, sort_keys=False, allow_unicode=True, default_flow_style=False, width=1_000_000)


def check_spec(text: str) -> str:
    """A match spec with its white space normalised, else `SpecificationError`: that it is one line that could be a
    package, and holds no credentials. Its full grammar is the resolver's."""
    spec = " ".join(text.split())
    if not spec:
        raise SpecificationError("it is empty; write a package, such as numpy=1.26, or remove it")
    if spec.startswith("-") or re.match(r"(?:git|hg|svn|bzr)\+|[\w.-]+(?:\[[\w,. -]*\])? @ ", spec):
        raise SpecificationError("it is written for pip; move it into the list under '- pip:'")
    if "{{" in spec or "<<" in spec:
        raise SpecificationError("it holds a template's placeholder; fill in the template first")
    _check_urls(spec)
    if not _SPEC.fullmatch(spec):
        raise SpecificationError("it cannot be a conda package; write it as in numpy=1.26 or conda-forge::numpy>=1.26")
    return spec


def check_channel(text: str) -> str:
    """A channel without the white space around it, else `SpecificationError`."""
    channel = text.strip()
    if not channel or any(character.isspace() or ord(character) < 32 for character in channel):
        raise SpecificationError("a channel is a name, a URL or a folder without white space")
    _check_urls(channel)
    return channel


def _check_urls(text: str) -> None:
    for url in _URL.findall(text):
        place = url.partition("::")[0]
        if problem := credentials.problem(place):
            raise SpecificationError(problem)
        if _TOKEN.search(place):
            raise SpecificationError(f"its URL holds a token (/t/…); {credentials.ADVICE}")


def _masked(text: str) -> str:
    return _TOKEN.sub(f"/t/{MASK}/", credentials.mask(text))


def _document(content: str | bytes, origin: str) -> Table:
    try:
        document = yaml_text.parse(content, origin)
    except SpecificationError as error:
        advice = _other_format(content)
        raise SpecificationError(f"{error}{f'. {advice}' if advice else ''}") from None
    if isinstance(document, Table):
        return document
    came = "it is empty" if document is None else "it is a list" if isinstance(document, Items) else "it is one text"
    advice = _other_format(content) or f"its keys are {', '.join(KEYS)}"
    raise refused(origin, 1, f"this is no conda environment file, {came}: {advice}")


def _other_format(content: str | bytes) -> str:
    """What a file that is none of conda's seems to be, and what to do with it."""
    text = content.decode("utf-8", "replace") if isinstance(content, bytes) else content
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if "@EXPLICIT" in lines:
        return "It is conda's explicit list of package URLs; give an environment.yml (conda env export)"
    if lines and all(map(_REQUIREMENT.match, lines)):
        return "It looks like a pip requirements file: use Environment.from_pip_requirements, or pip_requirements="
    return ""


class _Reader:
    """One document: where it is, and what was noted on the way."""

    def __init__(self, origin: str, folder: Path | None, check_files: bool) -> None:
        self._origin = origin
        self._folder = folder
        self._check_files = check_files
        self._warnings: list[str] = []

    def specification(self, document: Table) -> CondaSpecification:
        for key in document:
            if key not in KEYS:
                raise self._refused(key.line, yaml_text.unknown_key(key, KEYS, "a conda environment file"))
        dependencies, pip = list[str](), list[str]()
        for item in self._items(document, "dependencies"):
            if isinstance(item, Table):
                pip += self._pip(item)
            else:
                dependencies.append(self._checked(item, document, "dependencies", check_spec))
        channels = [
            self._checked(item, document, "channels", check_channel) for item in self._items(document, "channels")
        ]
        return CondaSpecification(
            name=self._text(document, "name"),
            channels=tuple(dict.fromkeys(channels)),
            dependencies=tuple(dependencies),
            pip=tuple(pip),
            prefix=self._text(document, "prefix"),
            variables=self._variables(document),
            warnings=tuple(self._warnings),
        )

    def _pip(self, section: Table) -> list[str]:
        for key in section:
            if key != "pip":
                written = f"{key}={section[key]}" if isinstance(section[key], Text) else f"{key}=VERSION"
                raise self._refused(
                    key.line, f"{str(key)!r:.80} is a mapping; a package is written as text: {written:.80}"
                )
        lines: list[str] = []
        for item in self._items(section, "pip"):
            if not isinstance(item, Text):
                raise self._refused(
                    getattr(item, "line", 0) or section.line_of("pip"),
                    "an item of the pip section is no text; write one requirement an item, in quotes if it holds ': '",
                )
            found, warnings = pip_section.read(
                item, self._origin, item.line, self._folder, check_files=self._check_files
            )
            lines += found
            self._warnings += warnings
        return lines

    def _variables(self, document: Table) -> dict[str, str]:
        given = document.get("variables")
        if given is None:
            return {}
        if not isinstance(given, Table):
            raise self._refused(document.line_of("variables"), "variables is a mapping: one NAME: value a line")
        found: dict[str, str] = {}
        for name, value in given.items():
            if not isinstance(value, Text):
                raise self._refused(name.line, f"the variable {str(name)!r:.80} has no text as value; quote it")
            found[str(name)] = str(value)
        return found

    def _items(self, table: Table, key: str) -> list[Value]:
        value = table.get(key)
        line = table.line_of(key)
        if value is None and key in table:
            hint = "; is the list below it indented too little?" if key == "pip" else ""
            self._warnings.append(f"{self._origin}:{line}: {key} is empty{hint}")
        if value is not None and not isinstance(value, Items):
            raise self._refused(line, f"{key} is a list: one '- item' a line below it")
        return list(value or ())

    def _checked(self, item: Value, table: Table, key: str, check: Callable[[str], str]) -> str:
        line = getattr(item, "line", 0) or table.line_of(key)
        if not isinstance(item, Text):
            raise self._refused(line, f"an item of {key} is {'empty' if item is None else 'no text'}; correct it")
        if item.kind != "str":
            raise self._refused(
                line,
                f"{str(item)!r:.80} is no text, but a {item.kind}; write name=version, or quote a name that is one",
            )
        try:
            return check(item)
        except SpecificationError as error:
            raise self._refused(line, f"cannot read {_masked(item)!r}: {error}") from None

    def _text(self, document: Table, key: str) -> str:
        value = document.get(key)
        if value is not None and not isinstance(value, Text):
            raise self._refused(document.line_of(key), f"{key} is text on one line")
        return str(value or "")

    def _refused(self, line: int, reason: str) -> SpecificationError:
        return refused(self._origin, line, reason)

"""A job's source as a layer: equal files give equal bytes, whatever their times and owners are."""

import logging
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from prefect_environments.core.build import deflate, tar
from prefect_environments.core.build.layer import LayerBlob, LayerWriter
from prefect_environments.core.errors import DefinitionError

FOLDER = "/job"
"""Where the source is in the image, and the job's working directory."""

_CHUNK = 1024 * 1024
_NAMED = 10
"""Files that a warning names."""
_SECRET_FILE = re.compile(
    r"(?:.*/)?(?:\.env(?:\.(?!example|sample|template)[^/]*)?|\.?netrc|_netrc|\.pypirc|\.git-credentials|\.htpasswd|\.pgpass"
    r"|\.boto|id_(?:rsa|dsa|ecdsa|ed25519)|[^/]*\.(?:pem|key|pfx|p12|jks|kdbx|ppk|publishsettings)"
    r"|credentials(?:\.json)?|service[-_]account[^/]*\.json|kubeconfig|\.(?:aws|azure|kube|ssh|docker)/[^/]+)",
    re.IGNORECASE,
)

logger = logging.getLogger(__name__)


def write_source(folder: Path, out: BinaryIO) -> LayerBlob:
    """Write all that is in `folder` as a layer at `FOLDER`, where whoever the job runs as may write.

    Raises `DefinitionError` for a name that is not UTF-8, and for sockets, pipes and devices.
    """
    root = FOLDER.strip("/")
    writer = LayerWriter(out, deflate.member)
    writer.add(tar.Entry(root, 0o777, tar.DIRECTORY))
    writer.add(tar.Entry(f"{root}/.wh..wh..opq", 0o644))  # hides what the base has there (image-spec)
    for entry in _below(folder, ""):
        _add(writer, entry, f"{root}/{os.path.relpath(entry.path, folder)}")
    return writer.finish()


def secret_files(paths: Iterable[str]) -> list[str]:
    """The paths whose names say that they hold keys or passwords."""
    return [path for path in paths if _SECRET_FILE.fullmatch(path)]


def warn_of_secrets(folder: Path) -> None:
    """Say which files of a source look like secrets: everybody who may pull the job's image could read them."""
    found = secret_files(os.path.relpath(entry.path, folder) for entry in _below(folder, ""))
    if found:
        more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        logger.warning(
            "the source holds what look like secrets, and becomes a layer that everybody can read who may pull the "
            "job's image: %s%s. List them in .amlignore, and use secret references",
            ", ".join(found[:_NAMED]),
            more,
        )


def _below(folder: Path, inside: str) -> "Iterator[os.DirEntry[str]]":
    with os.scandir(folder / inside) as children:
        for child in sorted(children, key=lambda child: child.name):
            yield child
            if child.is_dir(follow_symlinks=False):
                yield from _below(folder, os.path.join(inside, child.name))  # noqa: PTH118  # thousands of them


def _add(writer: LayerWriter, entry: "os.DirEntry[str]", path: str) -> None:
    try:
        path.encode()
    except UnicodeEncodeError:
        raise DefinitionError(f"the source holds a name that is not UTF-8: {path!r:.300}; rename it") from None
    if entry.is_symlink():
        writer.add(tar.Entry(path, 0o777, tar.SYMLINK, os.readlink(entry.path)))  # noqa: PTH115
    elif entry.is_dir():
        writer.add(tar.Entry(path, 0o777, tar.DIRECTORY))
    elif entry.is_file():
        status = entry.stat(follow_symlinks=False)
        mode = 0o777 if status.st_mode & 0o100 else 0o666
        with open(entry.path, "rb") as file:  # noqa: PTH123
            if status.st_size <= _CHUNK:
                writer.add(tar.Entry(path, mode), file.read())
            else:
                writer.add_stream(tar.Entry(path, mode), status.st_size, iter(lambda: file.read(_CHUNK), b""))
    else:
        raise DefinitionError(f"{path} in the source is neither a file nor a folder; list it in .amlignore")

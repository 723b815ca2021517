"""Looking for a secret in everything that a program left on disk."""

import base64
import binascii
import gzip
import io
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote, quote_plus

_DEEPEST = 4  # a wheel in a layer in a layout; deeper nesting is an archive bomb


def find_secret(secret: str | bytes, *paths: Path) -> list[str]:
    """Where `secret` stands in the files under `paths`: plain, URL-quoted, in hex or base64 at any offset, in names,
    and inside gzip, zip and tar files. A database is searched as the bytes it is.

    One line for each find, `path!member: form`. Raises `ValueError` for a secret that is too short to be told
    from chance, and `FileNotFoundError` for a path that does not exist, since either would prove nothing.
    """
    value = secret.encode() if isinstance(secret, str) else secret
    if len(value) < 6:
        raise ValueError("look for a secret of at least 6 bytes: shorter ones occur by chance")
    forms = dict(_forms(value))
    found: list[str] = []
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"nothing to search at {path}")
        for place in sorted([path, *everything_below(path)]):
            found += [f"{place}: name" for form in forms.values() if form in str(place.name).encode()]
            if place.is_file():
                with suppress(FileNotFoundError):  # what is gone by now, such as a database's journal, leaks nothing
                    found += _search(str(place), place.read_bytes(), forms, _DEEPEST)
    return found


def everything_below(folder: Path) -> list[Path]:
    """Files and folders in a folder in which others, such as a registry, may be at work: `rglob` fails where one goes
    while it looks."""
    return [Path(place, name) for place, folders, names in os.walk(folder) for name in (*folders, *names)]


def smaller_files(folder: Path, size: int) -> list[Path]:
    """The files in such a folder of less than `size` bytes."""
    found = []
    for path in everything_below(folder):
        with suppress(FileNotFoundError):
            found += [path] if path.is_file() and path.stat().st_size < size else []
    return found


def _forms(value: bytes) -> Iterator[tuple[str, bytes]]:
    yield "plain", value
    yield "hex", value.hex().encode()
    for name, quoted in (("URL-quoted", quote(value, safe="")), ("form-quoted", quote_plus(value))):
        if quoted.encode() != value:
            yield name, quoted.encode()
    for offset in range(3):
        # only the characters that depend on nothing but the secret, whatever stands before and after it
        whole = (offset + len(value)) // 3 * 4
        start = 0 if offset == 0 else 4
        text = base64.b64encode(bytes(offset) + value)[start:whole]
        if len(text) >= 6:
            yield f"base64 at offset {offset}", text
            if text != (safe := text.translate(bytes.maketrans(b"+/", b"-_"))):
                yield f"base64url at offset {offset}", safe


def _search(where: str, data: bytes, forms: dict[str, bytes], depth: int) -> Iterator[str]:
    yield from (f"{where}: {name}" for name, form in forms.items() if form in data)
    if depth:
        for member, content in _members(data):
            yield from _search(f"{where}!{member}", content, forms, depth - 1)


def _members(data: bytes) -> Iterator[tuple[str, bytes]]:
    """What a gzip, zip or tar file holds, with link targets and comments as text; nothing for other files."""
    if data.startswith(b"\x1f\x8b"):
        try:
            yield "gzip", gzip.decompress(data)
        except (OSError, EOFError, zlib.error, binascii.Error):
            yield "gzip", _inflated_so_far(data)
    elif data.startswith(b"PK\x03\x04"):
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                yield from ((info.filename, archive.read(info)) for info in archive.infolist())
        except (zipfile.BadZipFile, NotImplementedError, zlib.error, RuntimeError):
            return
    elif data[257:262] == b"ustar":
        try:
            with tarfile.open(fileobj=io.BytesIO(data)) as archive:
                for member in archive:
                    content = archive.extractfile(member) if member.isfile() else None
                    yield member.name, content.read() if content else member.linkname.encode()
        except tarfile.TarError:
            return


def _inflated_so_far(data: bytes) -> bytes:
    """What a cut-off gzip file gives before it ends."""
    try:
        return zlib.decompressobj(wbits=31).decompress(data)
    except zlib.error:
        return b""

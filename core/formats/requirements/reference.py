"""One requirement in its normal spelling (PEP 508, PEP 440, PEP 503), local paths made absolute `file:` URLs."""

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.specifiers import Specifier
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import Version

from prefect_environments.core.formats.requirements import credentials
from prefect_environments.core.formats.requirements.text import Line

_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)(?:\s*(\[[^\[\]]*\]))?\s*@\s*(\S+)")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_SCHEMES = re.compile(
    r"https?|file|wheel|git\+(?:https?|ssh|git|file)|hg\+(?:https?|ssh|static-http|file)"
    r"|svn\+(?:https?|ssh|svn|file)|bzr\+(?:https?|ssh|sftp|ftp|lp|file)"
)
_PRIVATE_WHEEL = re.compile(r"wheel://sha256/[0-9a-f]{64}/[^/?#]+\.whl")
_ILLEGAL = re.compile(r"[\s\"<>\\^`{|}]")  # RFC 3986, section 2: these are percent-encoded in a URL
_GLUED_MARKER = re.compile(r";\s*\(*(?:python_|sys_platform|platform_|os_name|implementation_|extra\b|['\"])")
_URL_MARKER = re.compile(r"\s;|;\s")
_EXTRAS = re.compile(r"(.+?)(\[[^\[\]]*\])")
_EGG = re.compile(r"([^\[\]]+)(\[[^\[\]]*\])?")
_ARCHIVES = (".whl", ".zip", ".tar.gz", ".tgz", ".tar", ".tar.bz2", ".tbz", ".tar.xz", ".txz")
_HASH = re.compile(r"sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128}")
_HINTS = (
    (r"\{\{|\}\}|<<|%\(", "it holds a template's placeholder; fill in the template first"),
    (r"^['\"]|['\"],?$|,$", "it is written as an item of a Python list; remove the quotes and the comma"),
    (r"\\", "a backslash continues a line only as its very last character"),
    (r"[^\x00-\x7f]", "it holds a character outside ASCII, perhaps an invisible one or a typographic quote or dash"),
    (r"^[\w.-]+(\[.*\])?\s*=[^=]", "a single '=' is conda's spelling; write '=='"),
    (r"[<>]=?\s*[\w.]+\.\*", "'.*' goes with '==' and '!=' only; write the bare version"),
    (r"~=\s*\d+(\D|$)(?!\d)", "'~=' needs at least two numbers, as in ~=1.0"),
    (r"[\w*]\s+(==|~=|!=|>=|<=|<|>)", "versions are separated by commas, as in >=1.0,<2"),
    (r"^(pip|conda|apt|apt-get|python)\s+", "it is a command; write only the package's name and version"),
    (r"^[\w.-]+\s+[\w.-]+", "a package's name and its version are joined by '==', as in name==1.0"),
    (r"^\S+(==|~=|!=|>=|<=|<|>)\s*$", "the version is missing"),
    (r"==|~=|!=|>=|<=|<|>", "the version is not a version or range of PEP 440, such as ==1.2 or >=1.0,<2"),
)


def requirement(line: Line, text: str, folder: Path | None, *, editable: bool = False) -> str:
    """The normal spelling of the requirement `text` of `line`; relative paths count from `folder`.

    Raises `RequirementsError` for what pip cannot read either, for paths that do not exist, and for credentials.
    """
    named = _NAMED.match(text)
    base, marker = _split_marker(line, text, is_url=bool(named) or _is_url(text))
    if named := _NAMED.fullmatch(base):
        package, extras, target = named.groups()
        found = f"{name(line, package)}{_extras(line, extras)} @ {_fragment(line, location(line, target, folder))}"
    elif editable or _is_url(base) or _is_path(base):
        found = _unnamed(line, base, folder)
    else:
        return _named(line, base) + (f"; {marker}" if marker else "")
    return found + (f" ; {marker}" if marker else "")


def location(line: Line, value: str, folder: Path | None) -> str:
    """`value` as a URL without credentials: a URL stays, a path becomes an absolute `file:` URL."""
    scheme = _SCHEME.match(value)
    if scheme and _is_url(value):
        if problem := credentials.problem(value):
            raise line.refused(problem)
        if not _SCHEMES.fullmatch(scheme[1].lower()):
            raise line.refused("its URL has a scheme that pip does not know; use https, git+https, git+ssh or file")
        if scheme[1].lower() == "wheel" and not _PRIVATE_WHEEL.fullmatch(value):
            raise line.refused("a wheel: address is what Environment.add_private_pip_wheel gave, unchanged")
        if scheme[1].lower() != "file":
            if _ILLEGAL.search(value) or not value[scheme.end() :].startswith("//"):
                raise line.refused("its URL is malformed; percent-encode spaces, quotes and braces, as in %20")
            if _GLUED_MARKER.search(value):
                raise line.refused("a marker follows the URL at once; put a space before the ';'")
            return value
        path, fragment = local_path(line, value)
        return f"{_absolute(line, path, folder).as_uri()}{fragment}"
    if re.match(r"[^/@]*@[^/:]*:", value):
        raise line.refused("it looks like an SSH address; write git+ssh://git@host/path")
    return _absolute(line, value, folder).as_uri()


def hashes(line: Line, values: list[str]) -> str:
    """`--hash=…` options, sorted (pip's documentation, "Secure installs")."""
    lowered = sorted({value.lower() for value in values})
    if not all(_HASH.fullmatch(value) for value in lowered):
        raise line.refused("a --hash is not sha256:, sha384: or sha512: with all its hex digits; weaker ones don't pin")
    return "".join(f" --hash={value}" for value in lowered)


def name(line: Line, text: str) -> str:
    """A package's name in its normal spelling (PEP 503)."""
    if not re.fullmatch(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?", text):
        raise line.refused("it holds a package's name that is none: letters, digits, '.', '_' and '-' are allowed")
    return canonicalize_name(text)


def _split_marker(line: Line, text: str, *, is_url: bool) -> tuple[str, str]:
    if not is_url:
        base, _, marker = text.partition(";")
    else:
        at = _URL_MARKER.search(text)  # a ';' within a URL is the URL's own
        base, marker = (text[: at.start()], text[at.end() :]) if at else (text, "")
    base, marker = base.strip(), marker.strip()
    if not marker:
        return base, ""
    try:
        return base, str(Marker(marker))
    except (ValueError, RecursionError):
        pass
    raise line.refused("its marker (behind ';') cannot be read; write it as in python_version < '3.12'")


def _named(line: Line, text: str) -> str:
    try:
        parsed = Requirement(text)
        extras = ",".join(sorted({canonicalize_name(extra, validate=True) for extra in parsed.extras}))
        specifiers = ",".join(sorted({_specifier(specifier) for specifier in parsed.specifier}))
        if not parsed.url:
            return canonicalize_name(parsed.name, validate=True) + (f"[{extras}]" if extras else "") + specifiers
    except (ValueError, RecursionError):
        pass
    hint = next((hint for pattern, hint in _HINTS if re.search(pattern, text)), "it is no requirement of PEP 508")
    raise line.refused(f"{hint}; expected something like name[extra]>=1.0,<2")


def _specifier(specifier: Specifier) -> str:
    operator, version = specifier.operator, specifier.version
    if operator == "===":  # compared as text, whatever the case (PEP 440, "Arbitrary equality")
        return f"{operator}{version.lower()}"
    if version.endswith(".*"):
        return f"{operator}{Version(version[:-2])}.*"
    return f"{operator}{Version(version)}"


def _extras(line: Line, text: str | None) -> str:
    if not text:
        return ""
    names = sorted({name(line, part.strip()) for part in text[1:-1].split(",") if part.strip()})
    return f"[{','.join(names)}]" if names else ""


def _is_url(text: str) -> bool:
    scheme = _SCHEME.match(text)
    return bool(scheme and (_SCHEMES.fullmatch(scheme[1].lower()) or text.startswith("//", scheme.end())))


def _is_path(text: str) -> bool:
    path = _EXTRAS.fullmatch(text)
    plain = path[1] if path else text
    return plain.startswith(".") or "/" in plain or os.sep in plain or plain.lower().endswith(_ARCHIVES)


def _unnamed(line: Line, text: str, folder: Path | None) -> str:
    """A URL or path without a name before it; a wheel's name stands in its file name."""
    extras = ""
    if (not _is_url(text) or text.lower().startswith("file:")) and (split := _EXTRAS.fullmatch(text)):
        text, extras = split[1].rstrip(), _extras(line, split[2])
    url = _fragment(line, location(line, text, folder))
    file = unquote(urlsplit(url).path).rpartition("/")[2]
    if not file.lower().endswith(".whl"):
        return url + extras
    try:
        return f"{parse_wheel_filename(file)[0]}{extras} @ {url}"
    except ValueError:
        pass
    raise line.refused("its file name is not that of a wheel: name-version-python-abi-platform.whl")


def _fragment(line: Line, url: str) -> str:
    """The URL with the name in `#egg=` normalised; the rest keeps its form (pip's documentation, "VCS Support")."""
    base, hash_sign, fragment = url.partition("#")
    parts = fragment.split("&")
    for position, part in enumerate(parts):
        if part.startswith("egg="):
            egg = _EGG.fullmatch(unquote(part[4:]))
            if not egg:
                raise line.refused("its #egg= holds no package's name; write #egg=name or name @ URL")
            parts[position] = f"egg={name(line, egg[1])}{_extras(line, egg[2])}"
    return f"{base}{hash_sign}{'&'.join(parts)}"


def local_path(line: Line, url: str) -> tuple[str, str]:
    """The path of a `file:` URL, which pip allows to be relative, and its fragment with the `#`."""
    rest, hash_sign, fragment = url[len("file:") :].partition("#")
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        if host not in ("", "localhost"):
            raise line.refused("a file: URL names another host; files are read on this machine only")
        rest = slash + path
    if _ILLEGAL.search(fragment):
        raise line.refused("its URL is malformed; percent-encode spaces, quotes and braces, as in %20")
    return url2pathname(re.sub("^/+", "/", rest)), hash_sign + fragment


def _absolute(line: Line, value: str, folder: Path | None) -> Path:
    """The path from `folder`, `..` folded as text as pip does. A relative one must exist; an absolute one need not,
    for a stored definition may be read on another machine than the one that has the file."""
    path = Path(re.sub("^/+", "/", value))  # POSIX keeps two slashes, which a file: URL reads as a host
    if path.is_absolute():
        return Path(os.path.normpath(path))
    if folder is None:
        raise line.refused(
            "its path is relative, and lines that come without a folder have none; write an absolute one"
        )
    path = Path(os.path.normpath(folder / path))
    if not _exists(path):
        raise line.refused("there is no such file or folder, counted from the folder of the file that names it")
    return path


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False

"""Match specs: what a definition asks of conda (CEP 29). They are checked, and kept as they were written.

rattler's lenient reading is conda's: `numpy=1.26` is any 1.26, `numpy==1.26.4` and `numpy 1.26.4` that version only.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from packaging.specifiers import InvalidSpecifier, SpecifierSet

from prefect_environments.core.errors import SpecificationError
from prefect_environments.core.lock.conda import channels

if TYPE_CHECKING:
    from rattler import MatchSpec

_NAME = re.compile(r"[a-z0-9_][a-z0-9_.-]*", re.IGNORECASE)
_FILE = re.compile(r"\.(conda|tar\.bz2)(#|$|[\]\"'])", re.IGNORECASE)
_CHANNEL_KEY = re.compile(r"""\bchannel\s*=\s*("[^"]*"|'[^']*'|[^\],\s]+)""")
_CANONICAL_CHANNEL = re.compile(r',?channel="[^"]*"')
_ONLY_VERSION = re.compile(r'[^\[]+(\[version="[^"]*"\])?')
_CLAUSE = re.compile(r"==|!=|>=|<=|~=|>|<")


@dataclass(frozen=True, slots=True)
class Spec:
    """A match spec that was read. `channel` is as it was written; empty: any channel."""

    text: str
    name: str
    channel: str
    matcher: "MatchSpec"

    def canonical(self) -> str:
        """The spec without its channel, in rattler's canonical form, such as `numpy[version="1.26.*"]`."""
        return _CANONICAL_CHANNEL.sub("", self.matcher.to_canonical_string()).replace("[,", "[").replace("[]", "")


@dataclass(frozen=True, slots=True)
class PlainPython:
    """A definition that asks conda for Python and pip only, which a base image's interpreter can give as well."""

    python: str
    """Versions of Python that are asked for, as `satisfies_python` reads them; `*` for any."""
    pip: tuple[str, ...] = ()
    """pip as pip requirements (PEP 508), such as `pip==24.*`; empty where pip isn't asked for."""


def normalise_spec(text: str) -> str:
    """`text` with its white space normalised and nothing else, if it is a match spec.

    Raises `SpecificationError` for what is none, or names no package, a file, or a channel with a password.
    """
    return read(text).text


def read(text: str) -> Spec:
    """Read a match spec; raises `SpecificationError`."""
    words = " ".join(text.split())
    channels.check_secrets(words, "a conda dependency")
    if not words.isprintable():
        raise SpecificationError(
            f"the conda dependency {words!r:.200} has characters that cannot be printed: retype it"
        )
    if "#" in words:
        raise _refused(words, "it has a comment: remove it")
    if _FILE.search(words):
        raise _refused(words, "it names a file: give the package's name and version, and its channel")
    matcher = _parse(words)
    name = matcher.name.normalized
    if not _NAME.fullmatch(name):
        raise _refused(words, f"{name!r} is no name of a package")
    if matcher.build is not None and re.search(r"[\s=,]", matcher.build):
        raise _refused(words, f"{matcher.build!r} is no build string: write name=version=build")
    if matcher.namespace is not None:
        raise _refused(words, "between a channel and a package stand two colons: channel::package")
    return Spec(words, name, _channel(words, matcher), matcher)


def read_all(texts: Iterable[str]) -> tuple[Spec, ...]:
    return tuple(map(read, texts))


def names_python(texts: Iterable[str]) -> bool:
    """Whether one of the specs asks for Python itself."""
    return any(spec.name == "python" for spec in read_all(texts))


def plain_python(texts: Iterable[str]) -> PlainPython | None:
    """What is asked of the interpreter, where conda is asked for nothing but `python` and `pip`, else `None`.

    A build string or a channel asks for conda's own. So does a version of pip that no pip requirement can express.
    """
    versions, pip = [], []
    for spec in read_all(texts):
        if spec.name not in ("python", "pip") or spec.channel or not _ONLY_VERSION.fullmatch(spec.canonical()):
            return None
        version = spec.matcher.version or "*"
        if spec.name == "python":
            versions.append(f"({version})" if "|" in version else version)
        elif (requirement := _pip_requirement(version)) is not None:
            pip.append(requirement)
        else:
            return None
    return PlainPython(",".join(version for version in versions if version != "*") or "*", tuple(dict.fromkeys(pip)))


def satisfies_python(spec: str, full_version: str) -> bool:
    """Whether Python `full_version` (`3.12.7`) is one that the version spec allows, by conda's rules.

    Raises `SpecificationError` where one of them cannot be read.
    """
    import rattler  # noqa: PLC0415  # only where conda is asked for
    from rattler.exceptions import InvalidVersionError, InvalidVersionSpecError  # noqa: PLC0415

    try:
        version = rattler.Version(full_version.rstrip("+"))  # Debian's mark of a changed build
        return rattler.VersionSpec(spec or "*", strict=False).matches(version)
    except (InvalidVersionError, InvalidVersionSpecError) as error:
        raise SpecificationError(
            f"cannot compare Python {full_version!r} with {spec!r}: {error}; write such as python=3.12"
        ) from None


def _parse(words: str) -> "MatchSpec":
    import rattler  # noqa: PLC0415  # only where conda is asked for
    from rattler.exceptions import InvalidMatchSpecError, PackageNameMatcherParseError  # noqa: PLC0415

    try:
        # conda has no extras, conditions or flags; here they would be read and then not be obeyed
        return rattler.MatchSpec(words, extras=False, conditionals=False, flags=False)
    except (InvalidMatchSpecError, PackageNameMatcherParseError) as error:
        said = str(error).split("\n", 1)[0]
        raise _refused(words, f"{said}. pip's requirements go below pip:") from None


def _channel(words: str, matcher: "MatchSpec") -> str:
    """The spec's channel as it was written, and checked: rattler's idea of it depends on this machine."""
    if matcher.channel is None:
        return ""
    before, separator, _ = words.partition("::")
    if key := _CHANNEL_KEY.search(words):  # it wins, as in conda
        given = key[1].strip("'\"")
    elif separator:
        given = before.strip()
        given = given.removesuffix(f"/{matcher.subdir}") if matcher.subdir else given
    else:
        raise _refused(words, "its channel cannot be read: write channel::package")
    channels.check(given)
    if given in ("defaults", "nodefaults"):
        raise _refused(words, f"{given} is no single channel: name the one that has the package")
    return given


def _pip_requirement(version: str) -> str | None:
    """`pip` of a conda version spec as a pip requirement, `None` where there is none that says the same."""
    clauses = [clause for clause in version.split(",") if clause != "*"]
    written = ",".join(clause if _CLAUSE.match(clause) else f"=={clause}" for clause in clauses)
    try:
        return f"pip{SpecifierSet(written)}"
    except InvalidSpecifier:
        return None


def _refused(words: str, reason: str) -> SpecificationError:
    return SpecificationError(f"the conda dependency {words!r:.200} cannot be read: {reason}")

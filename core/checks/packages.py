"""Checks of what is installed: Python, conda and pip packages."""

import re
from collections.abc import Iterator
from datetime import date, timedelta
from typing import TYPE_CHECKING

from packaging.requirements import InvalidRequirement, Requirement

from prefect_environments.core.checks.finding import Finding, error, only_here, warning
from prefect_environments.core.checks.support import PYTHON_END_OF_LIFE, PYTHON_NEAR_END_DAYS
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import SpecificationError

if TYPE_CHECKING:
    from prefect_environments.core.lock.conda.specs import Spec

_SHOWN = 10
_GOOD = "3.12"
_PATCHES = 40  # more than any minor version of Python has
_EXCLUSION = re.compile(r"!=[^,|]*")
_LIMIT = re.compile(r"==|~=|<|\.\*")
_LIMITS = ("==", "===", "~=", "<", "<=")


def check_packages(definition: EnvironmentDefinition, today: date) -> Iterator[Finding]:
    """What is installed into a managed environment. A user-managed image, a lock or an extension has its own rules."""
    if definition.user_managed or definition.pylock:
        return
    specs: list[Spec] = []
    for text in definition.conda_dependencies:
        from prefect_environments.core.lock.conda import specs as match_specs  # noqa: PLC0415 - rattler takes 0.1 s

        try:
            specs.append(match_specs.read(text))
        except SpecificationError as refusal:
            advice = f"write python={_GOOD}" if "python" in text else "write name, name=1.2 or name>=1.2,<2"
            yield error("conda_dependencies", str(refusal), advice)
    if not definition.extends:
        yield from _presence(definition)
        yield from _python([spec for spec in specs if spec.name == "python"], definition, today)
    yield from _conda(definition, specs)
    yield from _pins(definition, specs)


def _presence(definition: EnvironmentDefinition) -> Iterator[Finding]:
    if not (definition.conda_dependencies or definition.requirements):
        yield only_here(
            "conda_dependencies",
            "the environment is managed, and nothing is to be installed, so that it has Python and pip only",
            "add packages, or set user_managed if the image brings its own",
        )


def _python(specs: "list[Spec]", definition: EnvironmentDefinition, today: date) -> Iterator[Finding]:
    advice = f"write python={_GOOD}, or another version"
    if not specs or (len(specs) == 1 and specs[0].matcher.version is None):
        if definition.conda_dependencies:
            yield only_here("conda_dependencies", "no version of Python is given", advice)
        return
    if len(specs) > 1:
        given = ", ".join(spec.text for spec in specs)
        yield error("conda_dependencies", f"Python is asked for {len(specs)} times: {given}", "keep one of them")
        return
    text = specs[0].text
    minors = _minors(str(specs[0].matcher.version))
    if not minors:
        yield error("conda_dependencies", f"there is no Python for {text!r:.200}", advice)
        return
    newest = minors[-1]
    end = PYTHON_END_OF_LIFE.get(newest, date.max)
    if today > end:
        yield only_here("conda_dependencies", f"support of Python {newest} ended on {end}", "take a newer Python")
    elif end < today + timedelta(days=PYTHON_NEAR_END_DAYS):
        yield warning("conda_dependencies", f"support of Python {newest} ends on {end}", "take a newer Python")


def _minors(spec: str) -> list[str]:
    """The minor versions that a version spec allows, the oldest first; those to come count too."""
    from rattler import Version, VersionSpec  # noqa: PLC0415

    wanted = VersionSpec(spec)
    known = [*PYTHON_END_OF_LIFE, *(f"3.{minor}" for minor in range(50) if f"3.{minor}" not in PYTHON_END_OF_LIFE)]
    return [minor for minor in known if any(wanted.matches(Version(f"{minor}.{patch}")) for patch in range(_PATCHES))]


def _conda(definition: EnvironmentDefinition, specs: "list[Spec]") -> Iterator[Finding]:
    if not definition.conda_dependencies:
        return
    if not definition.conda_channels and not all(spec.channel for spec in specs):
        yield warning(
            "conda_channels", "no channel is given, and what conda takes then changes", "name one, such as conda-forge"
        )
    names = {spec.name for spec in specs}
    if definition.requirements and "pip" not in names:
        yield only_here(
            "conda_dependencies",
            "there are pip packages, and pip is not among the conda packages",
            "add pip, with a version, to the conda packages",
        )


def _pins(definition: EnvironmentDefinition, specs: "list[Spec]") -> Iterator[Finding]:
    conda = [spec.name for spec in specs if not _pinned_conda(spec)]
    pip = [name for name in map(_unpinned, definition.requirements) if name]
    advice = "the lock keeps what the first build finds; give versions, if the definition alone shall say them"
    for field, names in (("conda_dependencies", conda), ("requirements", pip)):
        others = [name for name in names if name not in ("python", "pip")]
        if others:
            more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
            yield warning(field, f"no version is pinned of {', '.join(others[:_SHOWN])}{more}", advice)
        if "pip" in names:
            yield warning(field, "no version is pinned of pip, which installs the others", "write it as in pip=25.3")


def _pinned_conda(spec: "Spec") -> bool:
    """Whether a spec has a version, or a limit above: what is only `>=1` may be anything tomorrow."""
    version = spec.matcher.version
    return version is not None and bool(_LIMIT.search(_EXCLUSION.sub("", str(version))))


def _unpinned(line: str) -> str:
    """The name of a requirement that is not pinned; empty for one that is, or is at a URL."""
    try:
        requirement = Requirement(line.partition(" --hash=")[0])
    except InvalidRequirement:
        return ""
    pinned = requirement.url or any(part.operator in _LIMITS for part in requirement.specifier)
    return "" if pinned else requirement.name

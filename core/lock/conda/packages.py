"""What a solved set of conda packages means for Python and pip."""

import re
from collections.abc import Iterable

from packaging.utils import InvalidName, canonicalize_name
from packaging.version import InvalidVersion, Version

from prefect_environments.core.lock.model import LockedCondaPackage

_NAME = re.compile(r"[\w.-]+")
_PYTHON = {"python", "python_abi"}


def python_version(packages: Iterable[LockedCondaPackage]) -> str:
    """The full version of the `python` package, such as `3.12.7`; empty without one."""
    return next((package.version for package in packages if package.name == "python"), "")


def pip_constraints(packages: Iterable[LockedCondaPackage]) -> tuple[str, ...]:
    """`name==version` (PEP 503 and 440 forms) of the packages that depend on Python, sorted.

    conda's name stands for the index's: they are the same for nearly all packages, and where they aren't, nobody
    asks pip for that name. A version that is none by PEP 440 is left out.
    """
    found = set()
    for package in packages:
        needs = {match[0] for line in package.record.get("depends", ()) if (match := _NAME.match(str(line)))}
        if package.name.startswith("_") or package.name in _PYTHON or not needs & _PYTHON:
            continue
        try:
            found.add(f"{canonicalize_name(package.name, validate=True)}=={Version(package.version)}")
        except (InvalidName, InvalidVersion):
            continue
    return tuple(sorted(found))

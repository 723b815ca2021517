"""How a command line names a version."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from prefect_environments.core.versions import VersionRecord
    from prefect_environments.core.workspace import Workspace

METAVAR = "NAME[:VERSION|@LABEL]"
Version = tuple[int | None, str]
"""A number, or a label."""

_TARGET = re.compile(r"(?P<name>[^:@]+)(?::(?P<version>0*[1-9][0-9]{0,8})|@(?P<label>[^:@]+))?")
_VERSION = re.compile(r"(?P<version>[0-9]{1,9})|@?(?P<label>[^:@]+)")


@dataclass(frozen=True, slots=True)
class Target:
    """A version of an environment, the newest without number and label."""

    name: str
    version: int | None = None
    label: str = ""

    async def find(self, workspace: "Workspace") -> "VersionRecord":
        """Its record. Raises `VersionNotFound` that says what there is."""
        from prefect_environments.core import steps

        return await steps.find_version(workspace, self.name, self.version, label=self.label)


def target(text: str) -> Target:
    """Of `NAME`, `NAME:VERSION` or `NAME@LABEL`."""
    found = _TARGET.fullmatch(text)
    if found is None:
        raise click.BadParameter(f"{text!r:.100} is no version: write iris, iris:3 or iris@production")
    version = found["version"]
    return Target(found["name"], int(version) if version else None, found["label"] or "")


def version(text: str) -> Version:
    """Of a version's number, or a label."""
    found = _VERSION.fullmatch(text)
    if found is None:
        raise click.BadParameter(f"{text!r:.100} is no version: write a number, or a label")
    return (int(found["version"]) if found["version"] else None), found["label"] or ""

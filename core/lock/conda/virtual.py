"""Virtual packages (CEP 30) of the image that is built: what it has that no package brings."""

from typing import TYPE_CHECKING

from prefect_environments.core.errors import SpecificationError
from prefect_environments.core.lock.conda.request import CondaRequest
from prefect_environments.core.lock.target import ARCHITECTURES

if TYPE_CHECKING:
    from rattler import GenericVirtualPackage

LINUX = "5.10"
"""The kernel that packages may count on. An image has none, and the worker's is not the job's: so it is a fixed one, of
the long-term series of 2020."""


def virtual_packages(request: CondaRequest) -> dict[str, tuple[str, str]]:
    """Version and build string by name. `__archspec` is the plain architecture, because jobs run on any machine."""
    found = {
        "__archspec": ("1", ARCHITECTURES[request.platform.architecture]),
        "__linux": (LINUX, "0"),
        "__unix": ("0", "0"),
        f"__{request.libc}": (request.libc_version, "0"),
    }
    return found | ({"__cuda": (request.cuda, "0")} if request.cuda else {})


def to_rattler(packages: dict[str, tuple[str, str]]) -> list["GenericVirtualPackage"]:
    """The packages as rattler's; raises `SpecificationError` for a version that is none."""
    import rattler  # noqa: PLC0415  # only where conda is asked for
    from rattler.exceptions import InvalidVersionError  # noqa: PLC0415
    from rattler.package import BuildString  # noqa: PLC0415

    found = []
    for name, (version, build) in packages.items():
        try:
            told = rattler.Version(version)
        except InvalidVersionError as error:
            raise SpecificationError(f"the image's {name.strip('_')} has the version {version!r}: {error}") from None
        found.append(rattler.GenericVirtualPackage(rattler.PackageName(name), told, BuildString(build)))
    return found

"""What solved packages mean for Python and pip."""

from prefect_environments.core.lock import conda
from prefect_environments.core.lock.model import LockedCondaPackage


def package(name: str, version: str, *depends: str) -> LockedCondaPackage:
    record = {"depends": list(depends)}
    return LockedCondaPackage(name, version, "0", "linux-64", f"{name}-{version}-0.conda", "0" * 64, record=record)


SOLVED = (
    package("python", "3.11.9", "openssl >=3"),
    package("python_abi", "3.11", "python 3.11.*"),
    package("openssl", "3.3.1"),
    package("Ruamel.Yaml", "0.18.06", "python >=3.11,<3.12.0a0"),
    package("numpy", "1.26.4", "libblas", "python_abi 3.11.* *_cp311"),
    package("tight", "1.0", "python>=3.8"),
    package("pythonish", "1.0", "python-dateutil"),
    package("tzdata-like", "2024c_x", "python"),
    package("_private", "1.0", "python"),
)


def test_python_is_the_version_of_its_package() -> None:
    assert conda.python_version(SOLVED) == "3.11.9"
    assert conda.python_version(SOLVED[1:]) == ""


def test_packages_that_depend_on_python_are_constraints_for_pip() -> None:
    assert conda.pip_constraints(SOLVED) == ("numpy==1.26.4", "ruamel-yaml==0.18.6", "tight==1.0")

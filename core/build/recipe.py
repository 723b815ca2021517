"""What decides an image's bytes besides the lock: the fixed layout of the environment, and its version.

Raise `VERSION` whenever the same lock would give other bytes: it enters every layer key and every image hash.
"""

from prefect_environments.core.lock.model import LockedCondaPackage, LockedPackage
from prefect_environments.core.lock.target import Target

VERSION = 1
CODEC = "deflate 0.9.0, level 1"
"""What compresses the files that come to us uncompressed, such as bytecode; see `deflate.py`."""
LINKER = "py-rattler 0.28.0"
"""What puts the prefix into conda packages and writes their scripts; see `conda/link.py`."""
PREFIX = "/opt/env"
"""Where the environment is in the image: a venv (PEP 405), or a conda environment."""

INSTALLER = "prefect-environments"


def site_packages(target: Target, prefix: str = PREFIX) -> str:
    """The folder of installed packages, relative to the image's root."""
    return f"{prefix.strip('/')}/lib/python{target.python_minor}/site-packages"


def executable(prefix: str = PREFIX) -> str:
    """The environment's interpreter as scripts name it."""
    return f"{prefix}/bin/python"


def layer_inputs(
    packages: tuple[LockedPackage, ...], target: Target, bytecode: str = "", prefix: str = PREFIX
) -> dict[str, object]:
    """All that a package layer's bytes depend on, as JSON; its canonical digest is the layer key.

    `bytecode` is the full version of the Python that compiles the packages' modules, or empty.
    """
    return {
        "recipe": VERSION,
        "prefix": prefix,
        "python": target.python_minor,
        "packages": [list(package.identity()) for package in packages],
        **({"bytecode": bytecode, "codec": CODEC} if bytecode else {}),
    }


def skeleton_inputs(target: Target, prefix: str = PREFIX) -> dict[str, object]:
    """All that the first layer depends on, where it is a venv."""
    return {"recipe": VERSION, "prefix": prefix, "python": target.python, "interpreter": target.interpreter}


def conda_skeleton_inputs() -> dict[str, object]:
    """All that the first layer depends on, where it is a conda environment."""
    return {"recipe": VERSION, "kind": "conda", "prefix": PREFIX}


def conda_inputs(
    packages: tuple[LockedCondaPackage, ...], python: str, replaced: frozenset[str] = frozenset()
) -> dict[str, object]:
    """All that a layer of conda packages depends on; `replaced` names those whose distribution pip's replaces.

    The Python minor counts for noarch packages only, which are installed for it.
    """
    noarch = any(package.subdir == "noarch" for package in packages)
    return {
        "recipe": VERSION,
        "kind": "conda",
        "prefix": PREFIX,
        "codec": CODEC,
        "linker": LINKER,
        "python": python if noarch or replaced else "",
        "packages": [[*package.identity(), package.name in replaced] for package in packages],
    }

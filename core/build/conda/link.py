"""One conda package linked by rattler into a folder of its own, as it will be at the image's prefix."""

import asyncio
import errno
import json
import os
import re
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prefect_environments.core.build import deflate, recipe
from prefect_environments.core.build.conda.contents import Contents
from prefect_environments.core.build.conda.stream import refused
from prefect_environments.core.errors import BuildError
from prefect_environments.core.lock.model import LockedCondaPackage

_SUBDIR = "linux-64"  # decides nothing but that it is linked as on Unix, whatever the worker's system is
_PYTHON = "python"
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE}


@cache
def check() -> None:
    """Raise `BuildError` where another release of linker or codec is installed than those that name the layers."""
    deflate.check()
    found = f"py-rattler {version('py-rattler')}"
    if found != recipe.LINKER:
        raise BuildError(
            f"the installed linker of conda packages is {found}, but layers are named after {recipe.LINKER}, and equal "
            f"names must be equal bytes: install {recipe.LINKER.replace(' ', '==')}"
        )


def link(package: LockedCondaPackage, path: Path, contents: Contents, python: str, folder: Path) -> dict[str, Any]:
    """Link a checked package below `folder/prefix`; gives rattler's record of it (its `conda-meta` JSON).

    Needs no network and must not be called where an event loop runs. Raises `PackageError`.
    """
    named = folder / package.filename  # rattler tells the format by the name
    named.symlink_to(path.absolute())
    try:
        asyncio.run(_install(named, contents, python, folder))
    except OSError:
        raise
    except Exception as error:  # rattler has an exception class for each of its parts
        found = _OS_ERROR.search(str(error))
        if found and int(found[1]) in _MACHINE:
            raise OSError(int(found[1]), os.strerror(int(found[1]))) from error
        why = " ".join(str(error).replace(f"{folder}/", "").split())
        raise refused(package.filename, f"rattler cannot link it ({why})") from error
    (written,) = (folder / "prefix" / "conda-meta").glob("*.json")
    record: dict[str, Any] = json.loads(written.read_bytes())
    return record


async def _install(named: Path, contents: Contents, python: str, folder: Path) -> None:
    import rattler  # noqa: PLC0415 - heavy, and for conda environments only
    from rattler.package.build_string import BuildString  # noqa: PLC0415
    from rattler.platform.subdir import Subdir  # noqa: PLC0415

    record = await rattler.RepoDataRecord.from_package_archive(named)
    record.url = named.as_uri()
    records, ignored = [record], set[str]()
    if contents.is_noarch_python:
        # it decides where modules go and what scripts start; no more than its minor may count
        own = rattler.PackageRecord(_PYTHON, python, BuildString("0"), 0, _SUBDIR)
        file = f"{_PYTHON}-{python}-0.conda"
        records.append(rattler.RepoDataRecord(own, file, f"file:///{_SUBDIR}/{file}", "file:///"))
        ignored = {_PYTHON}
    await rattler.install(
        records,
        folder / "prefix",
        cache_dir=folder / "cache",
        installed_packages=[],
        ignored_packages=ignored,
        platform=Subdir(_SUBDIR),
        execute_link_scripts=False,
        show_progress=False,
        alternative_target_prefix=recipe.PREFIX,
    )

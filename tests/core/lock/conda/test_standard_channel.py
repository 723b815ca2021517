"""The channel that other tests build on: its Python is real, and knows its prefix only from its binary."""

import subprocess
from pathlib import Path

import rattler

from prefect_environments.core.lock import conda
from prefect_environments.core.lock.target import Platform
from tests.support.channel import PLACEHOLDER, SUBDIR, standard_channel

PLATFORM = Platform({"linux-64": "amd64", "linux-aarch64": "arm64"}[SUBDIR])


async def test_its_python_runs_where_it_is_installed(tmp_path: Path) -> None:
    channel = standard_channel(tmp_path / "channel")
    request = conda.CondaRequest(("python", "greeter", "native"), (channel.url,), PLATFORM, "glibc", "2.36")
    packages = await conda.CondaResolver(cache=tmp_path / "cache").resolve(request)
    records = [await rattler.RepoDataRecord.from_package_archive(_archive(package.url)) for package in packages]
    for record, package in zip(records, packages, strict=True):
        record.url = str(package.url)
    prefix = tmp_path / "prefix"
    subdir = rattler.Subdir(SUBDIR)
    await rattler.install(records, prefix, cache_dir=tmp_path / "packages", platform=subdir, show_progress=False)

    def run(*command: str) -> str:
        return subprocess.run(
            [prefix / "bin" / command[0], *command[1:]], check=True, capture_output=True, text=True
        ).stdout

    code = "import ctypes, native, sqlite3, ssl, sys, sysconfig; print(sys.prefix, sysconfig.get_path('platlib'))"
    minor = ".".join(conda.python_version(packages).split(".")[:2])
    assert run("python", "-c", code).split() == [str(prefix), f"{prefix}/lib/python{minor}/site-packages"]
    assert run("greet") == "hello from greeter\n"
    assert PLACEHOLDER.encode() not in (prefix / "bin" / f"python{minor}").read_bytes()


def _archive(url: str | None) -> Path:
    assert url is not None
    return Path(url.removeprefix("file://"))

"""A private PostgreSQL on a free port, for a Prefect server that several machines share."""

import os
import shutil
import subprocess
from pathlib import Path

from tests.support.prefect import free_port
from tests.support.session import Session, missing, wait_for

USER = "postgres"
"""Debian's user for it: PostgreSQL refuses to run as root."""


def start_postgres(session: Session, name: str) -> tuple[str, int]:
    """Start an empty cluster; gives the address of its database for Prefect, and its process."""
    programs = _programs()
    folder, port = session.folder / name, free_port()
    folder.mkdir()
    become: list[str | Path] = []
    if os.geteuid() == 0:
        session.folder.chmod(0o711)  # else the user cannot reach its folder in it
        shutil.chown(folder, USER, USER)
        become = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
    data = folder / "data"
    make: list[str | Path] = [programs / "initdb", "--pgdata", data, "--auth=trust", "--username=prefect", "--no-sync"]
    done = subprocess.run(
        [*become, *make, "--encoding=UTF8", "--locale=C"], cwd="/", check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    log = session.log(f"{name}.log")
    # nothing is to outlive the test: no time is spent on safe writes
    quick = ["-c", "fsync=off", "-c", "full_page_writes=off", "-c", "max_connections=300"]
    process = session.spawn(
        *become,
        programs / "postgres",
        "-D",
        data,
        "-h",
        "127.0.0.1",
        "-p",
        str(port),
        "-k",
        folder,
        *quick,
        log=log.name,
    )
    check = [str(programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]

    def answers() -> bool:
        return subprocess.run(check, check=False).returncode == 0

    wait_for("PostgreSQL", answers, process=process, log=log)
    return f"postgresql+asyncpg://prefect@127.0.0.1:{port}/postgres", process.pid


def _programs() -> Path:
    """The folder of the newest PostgreSQL; Debian keeps it off the PATH."""
    found = [Path(place).parent for place in [shutil.which("postgres")] if place]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: float(folder.parent.name))
    usable = [folder for folder in found if (folder / "initdb").exists()]
    if not usable:
        missing("postgresql is not installed; `make test` as root on Debian installs it")
    return usable[-1]

"""One real Prefect server with its UI for all workers of a session, on a database that was migrated once."""

import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from importlib.metadata import version
from pathlib import Path

from tests.support.session import CACHE, Session, locked, wait_for

_QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_SERVER_LEVEL": "WARNING",
}


def start_server(session: Session) -> dict[str, str]:
    """Start an empty server; gives its API's `url`."""
    home = session.folder / "prefect-server"
    home.mkdir()
    shutil.copy(_migrated_database(home), home / "prefect.db")
    port = free_port()
    start_server_on(session, f"sqlite+aiosqlite:///{home / 'prefect.db'}", port, home)
    return {"url": f"http://127.0.0.1:{port}/api"}


def start_server_on(session: Session, database: str, port: int, home: Path) -> int:
    """Start a server on a database, which it migrates if that is empty; gives its process."""
    url = f"http://127.0.0.1:{port}/api"
    log = session.log(f"{home.name}.log")
    process = session.spawn(
        *(sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"),
        *("--host", "127.0.0.1", "--port", str(port), "--log-level", "warning"),
        log=log.name,
        env={**_QUIET, **_at(home, database), "PREFECT_SERVER_UI_API_URL": url},
    )
    wait_for("the Prefect server", lambda: _healthy(url), process=process, log=log)
    return process.pid


def free_port() -> int:
    """A port of this machine that nobody listens on just now."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def _at(home: Path, database: str) -> dict[str, str]:
    return {"PREFECT_HOME": str(home), "PREFECT_SERVER_DATABASE_CONNECTION_URL": database}


def _migrated_database(home: Path) -> Path:
    """An empty, migrated database of this Prefect version; migrating takes longer than starting."""
    ready = CACHE / f"prefect-{version('prefect')}-python{sys.version_info.minor}.db"
    with locked(ready.with_suffix(".lock")):
        if not ready.exists():
            upgrade = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "-y"]
            environment = {**os.environ, **_QUIET, **_at(home, f"sqlite+aiosqlite:///{home / 'new.db'}")}
            subprocess.run(upgrade, check=True, capture_output=True, env=environment)
            shutil.copy(home / "new.db", ready.with_suffix(".new"))
            ready.with_suffix(".new").rename(ready)
    return ready


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False

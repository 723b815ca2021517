"""What one test session owns: a folder, environment variables, and processes that all pytest-xdist workers share.

The process that starts first (the controller, or pytest without xdist) makes the folder and hands its path on in the
environment. Whoever needs a part first starts it, under a file lock; the controller ends them all.
"""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

_VARIABLE = "PREFECT_ENVIRONMENTS_TEST_SESSION"

CACHE = Path(__file__).resolve().parents[2] / ".cache"
"""What outlives a session because it takes long to make: base images, the Prefect server's empty database."""

_CLEARED = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "REGISTRY_AUTH_FILE", "DOCKER_HOST", "DOCKER_CONTEXT")


@dataclass(frozen=True)
class Session:
    """One test session; `owner` is true in the process that made it and ends it."""

    folder: Path
    owner: bool

    @classmethod
    def join(cls) -> "Session":
        """The session of this process: a new one, or in an xdist worker its controller's."""
        owner = "PYTEST_XDIST_WORKER" not in os.environ
        if owner:
            os.environ[_VARIABLE] = tempfile.mkdtemp(prefix="prefect-environments-tests-")
        session = cls(Path(os.environ[_VARIABLE]), owner)
        (session.folder / "logs").mkdir(exist_ok=True)
        (session.folder / "docker-config").mkdir(exist_ok=True)
        return session

    def isolate(self) -> None:
        """Keep this machine's settings out of the tests; must run before Prefect is imported."""
        # a shell's background job ignores it, and our processes would, too
        if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        for name in list(os.environ):
            if (name.startswith("PREFECT_") and name != _VARIABLE) or name.upper() in _CLEARED:
                del os.environ[name]
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # our processes would compile what they import, each anew
        worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
        os.environ |= {
            "DO_NOT_TRACK": "1",
            "DOCKER_CONFIG": str(self.folder / "docker-config"),
            "PREFECT_HOME": str(self.folder / f"prefect-home-{worker}"),
            "PREFECT_LOGGING_LEVEL": "WARNING",
            "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "UV_CACHE_DIR": os.environ.get("UV_CACHE_DIR", str(CACHE / "uv")),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
        }

    def log(self, name: str) -> Path:
        return self.folder / "logs" / name

    def once(self, name: str, start: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """What `start` gave the first of all processes that asked for `name`; everything in it is JSON."""
        known = self.folder / f"{name}.json"
        with locked(self.folder / f"{name}.lock"):
            if not known.exists():
                known.write_text(json.dumps(start()))
            found: dict[str, Any] = json.loads(known.read_text())
        return found

    def spawn(self, *command: str | Path, log: str, env: Mapping[str, str] | None = None) -> "subprocess.Popen[bytes]":
        """Start a process that the controller ends with the session; its output goes to `logs/<log>`."""
        with self.log(log).open("ab") as output:
            process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )
        (self.folder / f"{process.pid}.pid").touch()
        return process

    def close(self) -> None:
        """End the processes that are left and remove the folder; only its owner calls it."""
        groups = [int(path.stem) for path in self.folder.glob("*.pid")]
        for group in groups:
            end(group)
        for line in Path("/proc/self/mounts").read_text().splitlines():
            if line.split()[1].startswith(f"{self.folder}/"):  # dockerd leaves its network namespace mounted
                subprocess.run(["umount", "--lazy", line.split()[1]], check=False)
        os.environ.pop(_VARIABLE, None)
        shutil.rmtree(self.folder, ignore_errors=True)


def end(group: int, patience: float = 10) -> None:
    """Ask a process group to end, and after `patience` seconds end it."""
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGTERM)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline and _alive(group):
            time.sleep(0.02)
        os.killpg(group, signal.SIGKILL)


def _alive(group: int) -> bool:
    """Whether a process of the group still runs; our own dead children are collected on the way."""
    with suppress(ChildProcessError):
        os.waitpid(group, os.WNOHANG)
    os.killpg(group, 0)
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = status.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group and fields[0] not in "ZX":
                return True
    return False


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock between processes; the system frees it when its holder dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def missing(reason: str) -> NoReturn:
    """Skip the test by name with the reason; in continuous integration a missing part is a failure."""
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(f"CI must have every part, but {reason}", pytrace=False)
    pytest.skip(reason)


def need(*commands: str) -> None:
    """Skip (or, with CI=true, fail) unless every one of `commands` can be started."""
    absent = [command for command in commands if not shutil.which(command)]
    if absent:
        missing(f"{' and '.join(absent)} is not installed; `make test` as root on Debian installs it")


def wait_for(what: str, ready: Callable[[], Any], *, process: "subprocess.Popen[bytes]", log: Path) -> Any:
    """The first true answer of `ready`; fails with the end of the log when the process ends or 200 seconds pass."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        if answer := ready():
            return answer
        time.sleep(0.02)
    tail = log.read_text(errors="replace")[-2000:]
    pytest.fail(f"{what} did not start (exit status {process.poll()}); its log ends:\n{tail}", pytrace=False)

"""A real Docker engine: our own daemon where we may start one, else the one that this machine has."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.session import Session, missing, wait_for


@dataclass(frozen=True)
class DockerEngine:
    """A running engine. `host` is for DOCKER_HOST; registries on 127.0.0.1 need no https."""

    host: str
    api_version: str

    @property
    def environment(self) -> Mapping[str, str]:
        """What a Docker client needs to talk to this engine; newer clients must be told the older version."""
        return {"DOCKER_HOST": self.host, "DOCKER_API_VERSION": self.api_version}

    def docker(self, *args: str | Path) -> str:
        """Run the docker command; gives what it prints. Fails with what it says."""
        command = ["docker", *map(str, args)]
        done = subprocess.run(
            command, env={**os.environ, **self.environment}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"`{' '.join(command)}` ended with {done.returncode}: {done.stderr}{done.stdout}"
        return done.stdout

    def run(self, image: str, *args: str) -> str:
        """Run a command in a new container of `image` on the host's network; gives its standard output."""
        return self.docker("run", "--rm", "--network=host", image, *args)

    def pull(self, reference: str) -> None:
        self.docker("pull", "--quiet", reference)


def start_engine(session: Session) -> dict[str, Any]:
    """Start a daemon with nothing in it, or find the machine's; gives the fields of `DockerEngine`."""
    if not shutil.which("docker"):
        missing("docker is not installed; `make test` as root on Debian installs it")
    if os.geteuid() == 0 and shutil.which("dockerd"):
        return _start(session)
    if version := _answers(""):
        return {"host": "", "api_version": version}
    missing("no Docker engine answers, and only root can start one (dockerd)")


def _start(session: Session) -> dict[str, Any]:
    folder, log = session.folder / "docker", session.log("dockerd.log")
    folder.mkdir()
    host = f"unix://{folder}/docker.sock"
    process = session.spawn(
        "dockerd",
        f"--host={host}",
        f"--data-root={folder}/data",
        f"--exec-root={folder}/exec",
        f"--pidfile={folder}/pid",
        "--iptables=false",  # sandboxes without a firewall of their own; containers use the host's network
        "--bridge=none",
        log=log.name,
    )
    version = wait_for("dockerd", lambda: _answers(host), process=process, log=log)
    return {"host": host, "api_version": version}


def _answers(host: str) -> str:
    """The engine's API version, or nothing if no engine answers there."""
    command = ["docker", *(["--host", host] if host else []), "version", "--format", "{{.Server.APIVersion}}"]
    # a client that is newer than the engine negotiates the version for this one command
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""

"""A real OCI registry, docker-registry, on a free port with its own folder."""

import re
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.support.session import Session, need, wait_for

_LISTENING = re.compile(r"listening on (127\.0\.0\.1:\d+)")


@dataclass(frozen=True)
class Registry:
    """A running registry. `address` is `127.0.0.1:PORT`; it speaks http, and deletes when asked to."""

    address: str
    folder: Path
    log: Path
    pid: int
    username: str = ""
    password: str = ""

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    def repository_url(self, path: str) -> str:
        """`127.0.0.1:PORT/path`, as in an image reference."""
        return f"{self.address}/{path}"

    def log_lines(self) -> list[str]:
        """One line (common log format) for each request that was answered so far, in the order of answers."""
        marker = uuid.uuid4().hex
        try:
            urllib.request.urlopen(f"{self.url}/v2/?marker={marker}", timeout=10).close()
        except urllib.error.HTTPError as error:
            error.close()  # a registry with a password says 401, and logs the request all the same
        deadline = time.monotonic() + 10
        while marker not in (text := self.log.read_text(errors="replace")) and time.monotonic() < deadline:
            time.sleep(0.01)
        return [line for line in text.splitlines() if '] "' in line and "?marker=" not in line]

    def requests(self) -> list[str]:
        """`METHOD /path` of each request that was answered so far."""
        return [" ".join(line.split('"')[1].split()[:2]) for line in self.log_lines()]

    def to_json(self) -> dict[str, Any]:
        return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, known: dict[str, Any]) -> "Registry":
        return cls(**{**known, "folder": Path(known["folder"]), "log": Path(known["log"])})


def start_registry(session: Session, name: str, *, username: str = "", password: str = "", extra: str = "") -> Registry:
    """Start an empty registry; with a user name it wants basic authentication. `extra` is YAML for its config."""
    need("docker-registry", *(["htpasswd"] if username else []))
    folder = session.folder / name
    folder.mkdir()
    text = "version: 0.1\nlog: {level: info, formatter: text}\nhttp: {addr: '127.0.0.1:0'}\n"
    text += f"storage: {{filesystem: {{rootdirectory: '{folder}'}}, delete: {{enabled: true}}}}\n{extra}"
    if username:
        users = session.folder / f"{name}.htpasswd"
        line = ["htpasswd", "-B", "-C", "5", "-b", "-n", username, password]
        users.write_bytes(subprocess.run(line, check=True, capture_output=True).stdout)
        text += f"auth: {{htpasswd: {{realm: tests, path: '{users}'}}}}\n"
    config = session.folder / f"{name}.yml"
    config.write_text(text)
    log = session.log(f"{name}.log")
    process = session.spawn("docker-registry", "serve", config, log=log.name)
    found = wait_for("docker-registry", lambda: _LISTENING.search(log.read_text()), process=process, log=log)
    return Registry(found[1], folder, log, process.pid, username, password)

"""The empty environment is a venv that the base image's Python takes for one."""

import hashlib
import io
import tarfile

from prefect_environments.core.build.skeleton import write_skeleton
from prefect_environments.core.lock.target import Target
from tests.core.build.parts import SITE, TARGET


def _entries(target: Target) -> dict[str, tarfile.TarInfo]:
    out = io.BytesIO()
    write_skeleton(target, out)
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as archive:
        return {member.name: member for member in archive}


def test_its_links_lead_to_the_interpreter() -> None:
    entries = _entries(TARGET)
    links = {name.removeprefix("opt/env/"): member.linkname for name, member in entries.items() if member.issym()}
    assert links == {
        "bin/python": "/usr/bin/python3.11",
        "bin/python3": "python",
        "bin/python3.11": "python",
        "lib64": "lib",
    }
    assert entries[SITE].isdir() and {m.mode for m in entries.values() if m.isdir()} == {0o755}


def test_its_settings_name_the_interpreters_home() -> None:
    out = io.BytesIO()
    blob = write_skeleton(TARGET, out)
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as archive:
        file = archive.extractfile("opt/env/pyvenv.cfg")
        assert file is not None
        assert file.read().decode().splitlines() == [
            "home = /usr/bin",
            "include-system-site-packages = false",
            "version = 3.11.4",
        ]
    assert blob.digest == f"sha256:{hashlib.sha256(out.getvalue()).hexdigest()}"

"""The hashes that the task tells are those by which versions are registered."""

from pathlib import Path

from prefect_environments import EnvironmentDefinition, Workspace
from prefect_environments.core import hashes, loop
from prefect_environments.core.lock.model import Lock, LockedBase
from prefect_environments.core.lock.target import Target
from prefect_environments.core.versions import VersionRecord
from prefect_environments.tasks import hash_environment

LOCK = Lock(
    LockedBase("registry.example.com/python:3.12", f"sha256:{'a' * 64}"),
    Target("3.12.7", "/usr/bin/python3.12", "glibc", "2.36"),
    (),
)


def test_variables_of_the_environment_below_are_in_the_record_hash(tmp_path: Path) -> None:
    """As registering counts them: a version with other variables is another version."""
    workspace = Workspace.local(tmp_path)
    below = VersionRecord(
        workspace.name, "base", 0, f"oci:images@sha256:{'b' * 64}", environment_variables={"BELOW": "1", "BOTH": "1"}
    )
    loop.run(workspace.versions.register(below))
    wanted = EnvironmentDefinition(
        name="more", extends="base:1", requirements=("alpha",), environment_variables={"BOTH": "2", "OWN": "3"}
    )
    found = hash_environment.fn(wanted, workspace, LOCK)
    both = {"BELOW": "1", "BOTH": "2", "OWN": "3"}
    assert found["record_hash"] == hashes.record_hash(hashes.image_hash(LOCK), wanted, both)
    assert found["record_hash"] != hashes.record_hash(hashes.image_hash(LOCK), wanted)

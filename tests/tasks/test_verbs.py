"""Every task alone: in a user's own flow, and outside of any flow."""

import asyncio
import subprocess
from pathlib import Path

import pytest
from prefect import flow

from prefect_environments import ContainerRegistry, Environment, EnvironmentDefinition, ReadyImage, Workspace
from prefect_environments.blocks import EnvironmentVersion
from prefect_environments.core.errors import NotFound, VersionNotFound
from prefect_environments.core.hashes import image_hash
from prefect_environments.core.lock.model import Lock
from prefect_environments.core.oci.layout import Layout
from prefect_environments.core.steps import BuiltImage
from prefect_environments.core.versions import VersionRecord
from prefect_environments.tasks import (
    build_image,
    find_image,
    get_environment,
    hash_environment,
    list_environments,
    push_image,
    register_environment,
    resolve_environment,
)
from tests.flows.parts import Run, define, unique
from tests.support.base import BaseLayout
from tests.support.registry import Registry
from tests.support.session import need

VERBS = [
    build_image,
    find_image,
    get_environment,
    hash_environment,
    list_environments,
    push_image,
    register_environment,
    resolve_environment,
]


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_no_task_keeps_results_or_a_cache(verb: object) -> None:
    """A result that Prefect kept would claim that an image exists which the registry no longer has."""
    assert verb.persist_result is False  # type: ignore[attr-defined]
    assert type(verb.cache_policy).__name__ == "_None"  # type: ignore[attr-defined]


@pytest.mark.parametrize("place", ["local", "remote"])
def test_users_compose_their_own_flow(
    place: str, base_layout: BaseLayout, wheels: Path, request: pytest.FixtureRequest
) -> None:
    """Resolve, hash, build, register, find, get: each hands the next what it needs."""
    workspace: Workspace = request.getfixturevalue(place)
    definition = define(base_layout, wheels, "spam", "ham")

    @flow(persist_result=False)
    def own() -> tuple[Lock, BuiltImage, EnvironmentVersion, dict[str, str]]:
        lock = resolve_environment(definition, workspace)
        hashes = hash_environment(definition, workspace, lock)
        assert find_image(definition, workspace) is None
        built = build_image(definition, lock, workspace)
        return lock, built, register_environment(definition, built, workspace), hashes

    state = own(return_state=True)
    lock, built, version, hashes = state.result()
    assert [f"{p.name} {p.version}" for p in lock.packages] == ["eggs 2.0", "ham 3.0", "pip 26.1", "spam 1.0"]
    record = version.to_record()
    assert (hashes["image_hash"], hashes["record_hash"]) == (image_hash(lock), record.record_hash)
    assert hashes["definition_hash"] == record.definition_hash
    assert record.created_by["flow_run_id"] == str(state.state_details.flow_run_id)
    assert [task.state_name for task in Run(state.state_details.flow_run_id).tasks()] == ["Completed"] * 5
    found = find_image(definition, workspace)
    assert isinstance(found, ReadyImage)
    assert found.digest == built.descriptor.digest
    assert get_environment(definition.name, workspace) == version


def test_without_any_flow_the_tasks_are_functions(base_layout: BaseLayout, wheels: Path, local: Workspace) -> None:
    """Called one after the other in a script, with the v1 object as well; a second build finds the image."""
    environment = Environment(unique("env"))
    environment.docker.base_image = base_layout.reference
    environment.python.requirements = environment.python.requirements.__class__(
        packages=("spam",), find_links=(str(wheels),), no_index=True
    )
    lock = resolve_environment(environment, local)
    built = build_image(environment, lock, local)
    version = register_environment(environment, built, local)
    assert not built.reused
    assert build_image(environment, lock, local).reused
    assert "flow_run_id" not in version.to_record().created_by
    assert hash_environment(environment, local)["definition_hash"] == version.to_record().definition_hash


def test_an_image_that_is_not_there_is_not_registered(base_layout: BaseLayout, wheels: Path, tmp_path: Path) -> None:
    """A version without its image would be a promise that nobody keeps."""
    one, other = Workspace.local(tmp_path / "one"), Workspace.local(tmp_path / "other")
    definition = define(base_layout, wheels)
    built = build_image(definition, resolve_environment(definition, one), one)
    with pytest.raises(NotFound, match="build it first"):
        register_environment(definition, built, other)
    assert list_environments(other) == []


def test_an_image_goes_from_a_folder_to_a_registry(
    base_layout: BaseLayout, wheels: Path, local: Workspace, remote: Workspace, tmp_path: Path
) -> None:
    """With its definition, lock and SBOM, under the same digest; skopeo reads it there. Unknown ones are named."""
    need("skopeo")
    definition = define(base_layout, wheels)
    built = build_image(definition, resolve_environment(definition, local), local)
    path, digest = local.repository_path(definition.name), built.descriptor.digest
    pushed = push_image(f"{path}@{digest}", remote.registry, "copies/spam", local.registry)
    assert pushed == f"{remote.registry_settings.address}/copies/spam@{digest}"
    command = ["skopeo", "inspect", "--tls-verify=false", "--format", "{{.Digest}}", f"docker://{pushed}"]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip() == digest
    back = ContainerRegistry(address=f"oci:{tmp_path / 'back'}")
    assert push_image(pushed, back, "spam", remote.registry) == f"oci:{tmp_path / 'back'}:spam@{digest}"
    attached = asyncio.run(Layout(tmp_path / "back").repository("spam").referrers(digest))
    assert len({found.artifact_type for found in attached}) == 3
    with pytest.raises(NotFound, match="no-such"):
        push_image("no-such/image:1", remote.registry, "copies/spam", local.registry)


def test_unknown_versions_are_errors_that_name_the_known(base_layout: BaseLayout, local: Workspace) -> None:
    with pytest.raises(VersionNotFound, match=r"'local' has no environment 'train'; it has none yet"):
        get_environment("train", local)
    records = [keep(local, name, tag) for name, tag in (("spam", "a"), ("spam", "b"), ("eggs", "a"))]
    with pytest.raises(VersionNotFound, match="no environment 'train'; it has eggs, spam"):
        get_environment("train", local)
    with pytest.raises(VersionNotFound, match="'spam' has no version 3 in workspace 'local'; it has 1, 2"):
        get_environment("spam", local, version=3)
    assert get_environment("spam", local).to_record() == records[1]
    assert get_environment("spam", local, version=1).to_record() == records[0]


def keep(workspace: Workspace, name: str, record_hash: str) -> VersionRecord:
    """Register a record of no image, straight in the store."""
    reference = f"registry.example.com/environments/{name}@sha256:{'ab' * 32}"
    draft = VersionRecord(workspace.name, name, 0, reference, record_hash=record_hash)
    return asyncio.run(workspace.versions.register(draft))


def test_more_versions_than_a_page_are_listed_whole(remote: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect's API gives documents in pages; the list has them all, the newest is the one with the highest number."""
    monkeypatch.setattr("prefect_environments.blocks.versions.PAGE", 4)
    for number in range(1, 12):
        keep(remote, "many", str(number))
    keep(remote, "few", "a")
    assert [block.version for block in list_environments(remote, "many")] == list(range(1, 12))
    assert [(block.name, block.version) for block in list_environments(remote)] == [("few", 1), ("many", 11)]
    assert get_environment("many", remote).version == 11


def test_only_a_registry_out_of_reach_is_tried_again(
    wheels: Path, remote: Workspace, open_registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A base image that does not exist is no reason to ask twice; a registry that does not answer is."""
    monkeypatch.setattr(resolve_environment, "retry_delay_seconds", 0)

    def runs(base_image: str) -> int:
        @flow(persist_result=False)
        def own() -> None:
            definition = EnvironmentDefinition(name=unique("env"), base_image=base_image, requirements=("spam",))
            resolve_environment(definition, remote)

        state = own(return_state=True)
        assert state.is_failed()
        (task,) = Run(state.state_details.flow_run_id).tasks()
        return task.run_count

    assert runs(f"{open_registry.address}/no-such/image:1") == 1
    assert runs("127.0.0.1:9/no-such/image:1") == 2

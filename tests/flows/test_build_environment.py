"""The whole path as a flow: what it gives, what the run shows in the UI, and what it says when it cannot."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from prefect.client.schemas.objects import State

from prefect_environments import ContainerRegistry, Environment, EnvironmentDefinition, ReadyImage, Workspace
from prefect_environments.blocks import EnvironmentVersion
from prefect_environments.core.errors import (
    DefinitionError,
    PrefectEnvironmentsError,
    RegistryUnreachable,
)
from prefect_environments.core.names import document_name
from prefect_environments.flows import build_environment
from tests.flows.parts import Run, define, unique
from tests.support.base import BaseLayout
from tests.support.registry import Registry

STEPS = ["resolve-environment", "build-image", "register-environment"]


def finished(state: State[ReadyImage]) -> tuple[ReadyImage, Run]:
    """The result of `build_environment(…, return_state=True)`, and its run."""
    ready = state.result()
    assert isinstance(ready, ReadyImage)
    return ready, Run(state.state_details.flow_run_id)


def task_names(run: Run) -> list[str]:
    return [task.name.rpartition("-")[0] for task in run.tasks()]


def test_a_folder_holds_the_whole_workspace(
    base_layout: BaseLayout, wheels: Path, local: Workspace, tmp_path: Path
) -> None:
    """Images and versions are in the folder, and the second build finds both."""
    definition = define(base_layout, wheels)
    ready = build_environment(definition, local)
    assert ready.version == 1
    assert not ready.reused
    assert ready.reference.startswith(f"oci:{tmp_path}/workspace/images:environments/{definition.name}@sha256:")
    assert ready.packages == 3
    assert (tmp_path / "workspace" / "versions" / definition.name / "1.json").is_file()
    again = build_environment(definition, local)
    assert again.reused
    assert (again.version, again.reference, again.digest) == (1, ready.reference, ready.digest)


def test_a_run_shows_what_it_did(base_layout: BaseLayout, wheels: Path, remote: Workspace, run_logs: None) -> None:
    """Name, few task runs, progress, a result table, core's log lines, and the version's document on the API."""
    definition = define(base_layout, wheels, "spam", "ham")
    ready, run = finished(build_environment(definition, remote, return_state=True))
    assert run.run.name.startswith(f"build-{definition.name}-")
    assert task_names(run) == STEPS
    assert list(ready.seconds) == ["find", "resolve", "build", "register"]
    assert (ready.layers_new, ready.layers_reused) == (6, 0)  # base, empty environment, four packages
    (progress,) = run.artifacts("progress")
    assert progress.data == 100
    assert str(progress.description).startswith("4 of 4 packages (0 reused)")
    (result,) = run.artifacts("markdown")
    table = str(result.data)
    assert result.key == f"environment-{definition.name}"
    assert f"\n{ready.reference}\n" in table
    for line in ("| Packages | 4 |", "| Layers | 6 new, 0 reused |", "| spam 1.0 | 3.5 kB | new |", "resolve"):
        assert line in table
    text = run.messages(f"{definition.name} version 1 built: {ready.reference}")
    assert "base image base: Python 3." in text
    version: Any = EnvironmentVersion.load(document_name(remote.name, definition.name, 1))
    assert version.to_record().reference == ready.reference
    assert version.to_record().created_by["flow_run_id"] == str(run.id)


def test_a_warm_run_is_one_look_and_says_so(base_layout: BaseLayout, wheels: Path, remote: Workspace) -> None:
    """No task runs at all, nothing resolved, and an artifact that does not count layers which nobody looked at."""
    definition = define(base_layout, wheels)
    cold, _ = finished(build_environment(definition, remote, return_state=True))
    warm, run = finished(build_environment(definition, remote, return_state=True))
    assert warm.reused
    assert (warm.reference, warm.version, list(warm.seconds)) == (cold.reference, 1, ["find"])
    assert run.tasks() == []
    assert run.artifacts("progress") == []
    (result,) = run.artifacts("markdown")
    assert "reused, nothing built" in str(result.data)
    assert "| Layers |" not in str(result.data)


def test_an_added_package_is_the_only_new_layer(base_layout: BaseLayout, wheels: Path, remote: Workspace) -> None:
    """In the result and in the run's table: the other layers are reused."""
    first = define(base_layout, wheels, "spam")
    build_environment(first, remote)
    more = define(base_layout, wheels, "spam", "ham", name=first.name)
    ready, run = finished(build_environment(more, remote, return_state=True))
    assert (ready.version, ready.layers_new, ready.layers_reused) == (2, 1, 5)
    table = str(run.artifacts("markdown")[0].data)
    assert "| ham 3.0 | 2.5 kB | new |" in table
    assert "| spam 1.0 | 3.5 kB | reused |" in table


def test_force_and_upgrade_do_not_take_the_short_way(base_layout: BaseLayout, wheels: Path, local: Workspace) -> None:
    """Both resolve again; an equal image is the same version."""
    definition = define(base_layout, wheels)
    first = build_environment(definition, local)
    forced = build_environment(definition, local, force=True)
    upgraded = build_environment(definition, local, upgrade=True)
    assert not forced.reused
    assert upgraded.reused
    assert {(ready.digest, ready.version) for ready in (first, forced, upgraded)} == {(first.digest, 1)}


def test_a_saved_workspace_stays_a_reference_in_the_run(
    base_layout: BaseLayout, wheels: Path, remote: Workspace
) -> None:
    """The stored parameters lead to the block, so that a run can be repeated with the block as it is then."""
    remote.registry.save(unique("registry"))
    remote.save(unique("workspace"))
    ready, run = finished(build_environment(define(base_layout, wheels), remote, return_state=True))
    stored = run.run.parameters
    assert stored["workspace"] == {"$ref": {"block_document_id": str(remote._block_document_id)}}
    again = build_environment(stored["environment"], stored["workspace"])
    assert again.reused
    assert again.reference == ready.reference


def test_the_v1_surface_is_taken_as_it_is(
    base_layout: BaseLayout, wheels: Path, local: Workspace, tmp_path: Path
) -> None:
    """An `Environment` object is converted on the way in; what is stored is the definition."""
    requirements = tmp_path / "requirements.txt"
    requirements.write_text(f"--no-index\n--find-links {wheels}\nspam  # eggs come with it\n")
    environment = Environment.from_pip_requirements(unique("iris"), requirements)
    environment.docker.base_image = base_layout.reference
    ready, run = finished(build_environment(environment, local, return_state=True))
    assert ready.packages == 3
    assert EnvironmentDefinition(**run.run.parameters["environment"]) == environment.definition()


def test_a_changed_variable_is_a_new_version_of_the_same_image(
    base_layout: BaseLayout, wheels: Path, local: Workspace
) -> None:
    first = define(base_layout, wheels)
    one = build_environment(first, local)
    two = build_environment(first.model_copy(update={"environment_variables": {"OMP_NUM_THREADS": "2"}}), local)
    assert (two.version, two.digest, two.reused) == (2, one.digest, True)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"requirements": ["--no-such-option"]}, "no-such-option"),
        ({"name": "a/b"}, "environment name"),
        ({"base_image_username": "u", "base_image_password": "literal-pass"}, "must be a secret reference"),
        ({"unknown": 1}, "unknown"),
        ({"requirements": 3}, "requirements"),
        ({"environment_variables": {"API_KEY": "literal-pass"}}, "API_KEY looks like a secret"),
    ],
)
def test_a_wrong_definition_is_our_error_before_a_run_begins(
    wrong: dict[str, object], says: str, remote: Workspace, open_registry: Registry
) -> None:
    """Directly and through the flow's parameters; the registry is not asked anything, the value is not repeated."""
    given = {"name": "env", "base_image": "python:3.12-slim", **wrong}
    for call in (lambda: EnvironmentDefinition(**given), lambda: build_environment(given, remote)):  # type: ignore[call-overload]
        with pytest.raises(DefinitionError, match=says) as caught:
            call()
        assert "literal-pass" not in str(caught.value)
    assert [line for line in open_registry.requests() if remote.repository_prefix in line] == []


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        ({"base_image": ""}, DefinitionError, "names no base image"),
        ({"conda_dependencies": ["numpy"]}, DefinitionError, "names no channel"),
        ({"requirements": ["no-such-package"]}, PrefectEnvironmentsError, "no-such-package"),
    ],
)
def test_what_cannot_be_built_fails_at_once_in_one_task_run(
    wrong: dict[str, object],
    error: type[PrefectEnvironmentsError],
    says: str,
    base_layout: BaseLayout,
    wheels: Path,
) -> None:
    """No retry, and the run's state has our message."""
    workspace = Workspace.local(wheels.parent / "workspace")
    state = build_environment(define(base_layout, wheels, **wrong), workspace, return_state=True)
    run = Run(state.state_details.flow_run_id)
    with pytest.raises(error, match=says):
        state.result()
    assert says in str(run.run.state and run.run.state.message)
    (task,) = run.tasks()
    assert task.run_count == 1


def test_a_registry_that_is_down_fails_after_one_more_try(
    base_layout: BaseLayout, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Being out of reach is the one failure that a task repeats; then the run fails with what to do."""
    monkeypatch.setattr("prefect_environments.tasks.resolve_environment.retry_delay_seconds", 0)
    down = Workspace(name=unique("Down"), registry=ContainerRegistry(address="127.0.0.1:9", plain_http=True))
    state = build_environment(define(base_layout, wheels), down, return_state=True)
    run = Run(state.state_details.flow_run_id)
    with pytest.raises(RegistryUnreachable, match=r"127\.0\.0\.1:9"):
        state.result()
    assert run.run.state is not None
    assert run.run.state.is_failed()
    assert "127.0.0.1:9" in str(run.run.state.message)
    (task,) = run.tasks()
    assert task.run_count == 2


def test_a_registry_that_went_down_is_no_hit(base_layout: BaseLayout, wheels: Path, local: Workspace) -> None:
    """A registered version whose registry does not answer is an error: neither a yes nor a build."""
    definition = define(base_layout, wheels)
    build_environment(definition, local)
    down = local.model_copy(update={"registry": ContainerRegistry(address="127.0.0.1:9", plain_http=True)})
    with pytest.raises(RegistryUnreachable):
        build_environment(definition, down)
    assert [record.version for record in asyncio.run(local.versions.versions(definition.name))] == [1]

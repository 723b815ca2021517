"""`run_training_job` on a real server: built where needed, composed, watched, failed, and nothing secret kept."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.blocks.system import Secret
from pydantic import SecretStr

from prefect_environments import JobResult, ReadyImage, ScriptRunConfig, Workspace
from prefect_environments.blocks import EnvironmentVersion
from prefect_environments.core import loop
from prefect_environments.core.errors import DefinitionError, JobFailed, VersionNotFound
from prefect_environments.flows import build_environment, run_training_job
from tests.flows.parts import Run, define, unique
from tests.support.base import BaseLayout
from tests.support.engine import DockerEngine
from tests.support.jobs import is_alive, use_engine

SCRIPT = """\
import json, os, spam
print("trained with spam", spam.__version__, "for", os.environ.get("TOKEN"))
json.dump({"accuracy": 0.97, "epochs": 3}, open("outputs/metrics.json", "w"))
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "train.py").write_text(SCRIPT)
    (folder / "fail.py").write_text("print('about to fail')\nraise ValueError('no data')\n")
    return folder


def job(source: Path, **fields: Any) -> ScriptRunConfig:
    """A job as a process, which takes less time than a container."""
    given = {"source_directory": str(source), "script": "train.py", "compute_target": "local:process"}
    return ScriptRunConfig(**{**given, **fields})


@pytest.mark.usefixtures("run_logs")
def test_a_definition_is_built_once_and_its_jobs_are_watched_in_the_run(
    base_layout: BaseLayout, wheels: Path, local: Workspace, source: Path, tmp_path: Path
) -> None:
    """Log lines, metrics as a table, a page with the outputs; the second job finds the image."""
    definition = define(base_layout, wheels, "spam")
    config = job(source, environment=definition)
    outputs = str(tmp_path / "jobs")
    state = run_training_job(config, local, outputs_directory=outputs, return_state=True)
    result: JobResult = state.result()
    assert (result.name, result.version, result.exit_code, result.target) == (definition.name, 1, 0, "process")
    assert result.metrics == {"accuracy": 0.97, "epochs": 3}
    assert result.outputs.startswith(outputs)
    run = Run(state.state_details.flow_run_id)
    assert run.run.name.startswith(f"train-{definition.name}-")
    said = run.messages("ended well")
    assert "trained with spam 1.0 for None" in said
    assert f"running in {definition.name} version 1: oci:" in said
    assert [task.name.rpartition("-")[0] for task in run.tasks()] == ["build-environment", "run-job"]
    (table,) = run.artifacts("table")
    assert json.loads(str(table.data)) == [
        {"metric": "accuracy", "value": 0.97},
        {"metric": "epochs", "value": 3},
    ]
    (page,) = run.artifacts("markdown")
    assert "metrics.json" in str(page.data) and result.reference in str(page.data)
    again = run_training_job(config, local, outputs_directory=outputs, return_state=True)
    assert again.result().version == 1
    assert [task.name.rpartition("-")[0] for task in Run(again.state_details.flow_run_id).tasks()] == ["run-job"]


def test_it_composes_in_a_users_own_flow_by_docker(
    *,
    base_layout: BaseLayout,
    wheels: Path,
    local: Workspace,
    source: Path,
    tmp_path: Path,
    docker_engine: DockerEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What `build_environment` returns is what the job takes; `local` finds the engine."""
    use_engine(docker_engine, monkeypatch)
    definition = define(base_layout, wheels, "spam")

    @flow(persist_result=False)
    def pipeline() -> tuple[ReadyImage, JobResult]:
        ready = build_environment(definition, local)
        config = job(source, environment=ready, compute_target="local")
        return ready, run_training_job(config, local, outputs_directory=str(tmp_path / "jobs"))

    ready, result = pipeline()
    assert (result.reference, result.target, result.metrics["accuracy"]) == (ready.reference, "docker", 0.97)


def test_a_registered_version_is_taken_as_a_parameter(
    base_layout: BaseLayout, wheels: Path, local: Workspace, source: Path, tmp_path: Path
) -> None:
    """The drop-down of the UI; one of another workspace, two environments at once, and unknown names are refused."""
    ready = build_environment(define(base_layout, wheels, "spam"), local)
    version = EnvironmentVersion.from_record(loop.run(local.versions.get(ready.name, ready.version)))
    outputs = str(tmp_path / "jobs")
    result = run_training_job(job(source), local, environment=version, outputs_directory=outputs)
    assert (result.name, result.version) == (ready.name, 1)
    with pytest.raises(DefinitionError, match="given twice"):
        run_training_job(job(source, environment=ready.name), local, environment=version)
    elsewhere = Workspace.local(tmp_path / "elsewhere", name="elsewhere")
    with pytest.raises(DefinitionError, match="of the workspace 'local'"):
        run_training_job(job(source), elsewhere, environment=version)
    with pytest.raises(VersionNotFound, match=ready.name):
        run_training_job(job(source, environment=f"{ready.name}:9"), local)
    with pytest.raises(DefinitionError, match="names no environment"):
        run_training_job(job(source), local)
    with pytest.raises(DefinitionError, match="another workspace's"):
        run_training_job(job(source, environment=f"{ready.name}:1@sha256:{'0' * 64}"), local)


def test_a_failing_script_fails_the_run_with_its_last_lines(
    base_layout: BaseLayout, wheels: Path, local: Workspace, source: Path, tmp_path: Path
) -> None:
    config = job(source, environment=define(base_layout, wheels, "spam"), script="fail.py")
    state = run_training_job(config, local, outputs_directory=str(tmp_path / "jobs"), return_state=True)
    assert state.is_failed()
    shown = Run(state.state_details.flow_run_id).run.state
    assert shown is not None and "ValueError: no data" in str(shown.message) and "about to fail" in str(shown.message)
    with pytest.raises(JobFailed, match="exit status 1"):
        state.result()


def test_what_cannot_run_is_refused_before_anything_is_built(
    base_layout: BaseLayout, wheels: Path, local: Workspace, source: Path
) -> None:
    definition = define(base_layout, wheels, "spam")
    for fields, error in (
        ({"script": "missing.py"}, DefinitionError),
        ({"compute_target": "team-pool"}, DefinitionError),
    ):
        with pytest.raises(error):
            run_training_job(job(source, environment=definition, **fields), local)
    assert loop.run(local.versions.names()) == []


@pytest.mark.usefixtures("run_logs")
def test_a_secret_is_seen_by_the_script_and_not_by_the_server(
    base_layout: BaseLayout, wheels: Path, local: Workspace, source: Path, tmp_path: Path
) -> None:
    """The parameter holds the reference; log, page and result hold a mask."""
    value, name = unique("planted"), unique("secret")
    Secret(value=SecretStr(value)).save(name)
    (source / "train.py").write_text(SCRIPT + "open('outputs/seen.txt', 'w').write(os.environ['TOKEN'])\n")
    config = job(
        source,
        environment=define(base_layout, wheels, "spam"),
        environment_variables={"TOKEN": f"secret:{name}"},
    )
    state = run_training_job(config, local, outputs_directory=str(tmp_path / "jobs"), return_state=True)
    result: JobResult = state.result()
    assert Path(result.outputs, "seen.txt").read_text() == value
    run = Run(state.state_details.flow_run_id)
    said = run.messages("ended well")
    assert "for **********" in said
    parameters = json.dumps(run.run.parameters)
    assert f"secret:{name}" in parameters
    artifacts = [str(found.data) for kind in ("table", "markdown") for found in run.artifacts(kind)]
    assert not any(value in text for text in (said, parameters, str(result), *artifacts))


def test_ctrl_c_stops_the_job_and_leaves_nothing(
    base_layout: BaseLayout, wheels: Path, local: Workspace, source: Path, tmp_path: Path
) -> None:
    ready = build_environment(define(base_layout, wheels, "spam"), local)
    (source / "train.py").write_text(
        "import os, subprocess, time\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        "open('outputs/tmp', 'w').write(f'{os.getpid()} {child.pid}')\n"
        "os.rename('outputs/tmp', 'outputs/pids')\n"
        "time.sleep(600)\n"
    )
    program = textwrap.dedent(f"""
        from prefect_environments import ScriptRunConfig, Workspace
        from prefect_environments.flows import run_training_job
        workspace = Workspace.local({str(tmp_path / "workspace")!r})
        config = ScriptRunConfig(**{job(source, environment=ready).model_dump(mode="json")!r})
        run_training_job(config, workspace, outputs_directory={str(tmp_path / "jobs")!r})
    """)
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    process = subprocess.Popen([sys.executable, "-c", program], env=environment, start_new_session=True)
    while not (found := list(tmp_path.glob("jobs/*/outputs/pids"))):
        assert process.poll() is None
        time.sleep(0.05)
    pids = [int(pid) for pid in found[0].read_text().split()]
    assert all(map(is_alive, pids))
    process.send_signal(signal.SIGINT)
    assert process.wait(60) != 0
    assert not any(map(is_alive, pids))
    assert list((tmp_path / "cache").rglob("tmp-*")) == []

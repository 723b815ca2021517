"""examples/pipeline runs as it stands, and the flows compose in asynchronous flows, too."""

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from prefect import flow

from prefect_environments import JobResult, ScriptRunConfig, Workspace
from prefect_environments.flows import build_environment, run_training_job
from tests.flows.parts import define, wheel_folder
from tests.images.test_job_process import needs_the_bases_python
from tests.support.base import BaseLayout

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "pipeline" / "pipeline.py"


@pytest.mark.network
@needs_the_bases_python
def test_the_example_builds_trains_and_evaluates(prefect_server: str, base_layout: BaseLayout, tmp_path: Path) -> None:
    """In folders and with processes alone; the second job gets the model that the first one left."""
    command = [sys.executable, str(EXAMPLE), "--base", base_layout.reference, "--folder", str(tmp_path / "all")]
    environment = {
        **os.environ,
        "PREFECT_API_URL": prefect_server,
        "PREFECT_LOGGING_LEVEL": "INFO",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "DOCKER_HOST": f"unix://{tmp_path}/nobody.sock",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    found = re.search(r"^training (0\.\d+), evaluation (0\.\d+)$", done.stdout, re.MULTILINE)
    assert found and all(0.9 < float(accuracy) <= 1 for accuracy in found.groups()), said
    assert "trained on 400 points with numpy" in said
    assert f"accuracy {found[2]} on 400 new points" in said
    (model,) = (tmp_path / "all" / "jobs").rglob("model.npz")
    assert f"the model in {model.parent} was made in oci:{tmp_path}/all/images:environments/pipeline@sha256:" in said
    assert not list(tmp_path.rglob("tmp-*"))


@needs_the_bases_python
async def test_jobs_run_side_by_side_in_an_asynchronous_flow(
    prefect_server: str, base_layout: BaseLayout, tmp_path: Path
) -> None:
    """Each waits for the other's file: one after the other, they would wait for ever."""
    wheels = wheel_folder(tmp_path / "wheels")
    workspace = Workspace.local(tmp_path / "workspace")
    source, meeting = tmp_path / "source", tmp_path / "meeting"
    source.mkdir()
    meeting.mkdir()
    (source / "train.py").write_text(
        "import pathlib, sys, time, spam\n"
        "own, other = (pathlib.Path(sys.argv[1], name) for name in sys.argv[2:])\n"
        "own.touch()\n"
        "while not other.exists(): time.sleep(0.02)\n"
    )

    @flow(persist_result=False)
    async def side_by_side() -> list[JobResult]:
        ready = await asyncio.to_thread(build_environment, define(base_layout, wheels, "spam"), workspace)
        configs = [
            ScriptRunConfig(
                source_directory=str(source),
                script="train.py",
                arguments=(str(meeting), *names),
                environment=ready,
                compute_target="local:process",
                outputs="",
            )
            for names in (("one", "two"), ("two", "one"))
        ]
        jobs = (asyncio.to_thread(run_training_job, config, workspace) for config in configs)
        return list(await asyncio.gather(*jobs))

    first, second = await side_by_side()
    assert first.reference == second.reference and first.id != second.id

"""A job in a work pool that is cancelled in the moment in which its run is started."""

import asyncio
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import arun_deployment

from prefect_environments import ScriptRunConfig
from prefect_environments.blocks import ContainerRegistry, Workspace
from prefect_environments.core.jobs.job_image import JobImage
from prefect_environments.core.jobs.launcher import JobRequest
from prefect_environments.core.jobs.log import JobLog
from prefect_environments.core.jobs.run import open_channel
from prefect_environments.core.lock.model import Lock
from prefect_environments.core.site import open_site
from prefect_environments.core.versions import VersionRecord
from prefect_environments.tasks import pool as pools
from tests.core.lock.conftest import BASE, TARGET
from tests.support.pool import make_docker_pool, runs_of_jobs

IMAGE = f"registry.example.com/jobs@sha256:{'a' * 64}"


async def test_a_run_whose_start_is_answered_after_the_cancellation_is_cancelled_too(
    prefect_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a container would start for a job that nobody waits for."""
    name, started = f"pool-{uuid4().hex[:8]}", asyncio.Event()
    await asyncio.to_thread(make_docker_pool, name)

    async def slowly(*args: Any, **options: Any) -> FlowRun:
        run = await arun_deployment(*args, **options)
        started.set()
        await asyncio.sleep(0.5)  # the answer is on its way
        return run

    async def image(*args: object) -> JobImage:
        return JobImage(IMAGE, reused=True, source_size=0, bytes_sent=0)

    monkeypatch.setattr(pools, "arun_deployment", slowly)
    monkeypatch.setattr(pools, "ensure_job_image", image)  # what it is made of does not matter here
    team = Workspace(name="team", registry=ContainerRegistry(address="registry.example.com"))
    config = ScriptRunConfig(script="train.py", environment="demo", compute_target=name, outputs="")
    record = VersionRecord("team", "demo", 1, reference=IMAGE, python_path="/opt/env/bin/python")
    job = uuid4().hex
    async with open_site(team, cache=tmp_path / "cache") as site:
        channel = open_channel(site, config, record, job)
        request = JobRequest(
            job, config, record, Lock(BASE, TARGET, (), ()), tmp_path, tmp_path, tmp_path, channel=channel
        )
        work = asyncio.create_task(pools.PoolLauncher(site).run(request, JobLog()))
        await asyncio.wait_for(started.wait(), 60)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
    (run,) = await asyncio.to_thread(runs_of_jobs, job)
    async with get_client() as client:
        state = (await client.read_flow_run(run.id)).state
    assert state is not None and (state.is_cancelled() or state.is_cancelling())

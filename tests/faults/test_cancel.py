"""Builds that are cancelled in the middle leave no upload, no file and no process behind."""

import asyncio
import json
import signal
import sys
from pathlib import Path

import pytest
from aiohttp import web

from prefect_environments.core.oci.image import ImageManifest
from tests.faults import proxy as p
from tests.faults.conftest import Ground, open_uploads
from tests.faults.parts import NAME, Plan, leftovers, push, settled_leftovers
from tests.faults.proxy import Proxy, Rule, proxy_to
from tests.support.registry import Registry as Running

ROOT = Path(__file__).parents[2]
PLACES = {
    "a session is opened": r"^POST .*/demo/blobs/uploads/$",
    "a blob is sent": r"^PUT .*/demo/blobs/uploads/",
    "the manifest is sent": r"^PUT .*/demo/manifests/",
    "a layer is mounted": r"^POST .*mount=",
}


@pytest.mark.parametrize("place", PLACES)
async def test_a_cancelled_push_closes_its_sessions_and_removes_its_files(place: str, ground: Ground) -> None:
    slow = asyncio.Event()

    async def later(proxy: Proxy, request: web.Request) -> web.StreamResponse:
        await asyncio.wait([asyncio.ensure_future(slow.wait())], timeout=0.3)
        return p.reply(await proxy.forward(request))

    async with proxy_to(ground.registry.address, Rule(PLACES[place], later, None)) as proxy:
        plan, workspace = ground.at(proxy.address)
        task = asyncio.create_task(push(plan, workspace, ground.folder / "cache"))
        await proxy.reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.5)  # what the proxy has in hand still reaches the registry
    assert await ground.open_uploads() == []
    assert await settled_leftovers(ground.folder) == []
    assert await workspace.versions.versions(NAME) == []


@pytest.mark.parametrize("how", ["asyncio.run", "the synchronous surface"])
async def test_ctrl_c_in_a_push_closes_its_sessions_and_ends_the_process(
    how: str, plan: Plan, open_registry: Running, tmp_path: Path
) -> None:
    async with proxy_to(open_registry.address, Rule(r"^PUT .*/blobs/uploads/", p.stall, None)) as proxy:
        prefix = f"cancel/{tmp_path.name}".lower().replace("_", "-")
        work = {"base": plan.definition.base_image, "lock": plan.lock.to_pylock(), "prefix": prefix}
        work |= {"images": proxy.address, "folder": str(tmp_path / "build"), "how": how}
        (tmp_path / "work.json").write_text(json.dumps(work))
        runs = "asyncio.run(go)" if how == "asyncio.run" else "loop.run(go)"
        script = (
            "import asyncio, json, signal, sys; from pathlib import Path\n"
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job starts with it ignored
            "from prefect_environments.core import loop\n"
            "from prefect_environments.core.lock.model import Lock\n"
            "from prefect_environments.core.registry_settings import RegistrySettings\n"
            "from tests.faults.parts import plan_on, push, team\n"
            "work = json.loads(Path(sys.argv[1]).read_text()); folder = Path(work['folder'])\n"
            "plan = plan_on(work['base'], Lock.from_pylock(work['lock']))\n"
            "there = team(RegistrySettings(work['images']), folder / 'versions', work['prefix'])\n"
            f"go = push(plan, there, folder / 'cache'); {runs}\n"
        )
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, str(tmp_path / "work.json"), cwd=ROOT, stderr=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(60):
            await proxy.reached.wait()
            process.send_signal(signal.SIGINT)
            _, said = await process.communicate()
    assert process.returncode not in (0, None) and b"KeyboardInterrupt" in said
    assert open_uploads(open_registry, prefix) == []
    assert leftovers(tmp_path) == []


async def test_the_next_run_completes_after_a_cancelled_one(ground: Ground) -> None:
    async with proxy_to(ground.registry.address, Rule(PLACES["a blob is sent"], p.stall, 1)) as proxy:
        plan, workspace = ground.at(proxy.address)
        task = asyncio.create_task(push(plan, workspace, ground.folder / "cache"))
        await proxy.reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        record = await push(plan, workspace, ground.folder / "cache")
    assert record.digest == plan.digest
    async with ground.client() as client:
        stored = await client.repository(ground.repository).get_manifest(record.digest)
        assert len(ImageManifest.from_bytes(stored.content).layers) == 2 + 1 + len(plan.lock.packages)

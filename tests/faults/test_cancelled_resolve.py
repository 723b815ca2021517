"""Ctrl-C while uv asks an index: uv and its folder are gone when the process is."""

import asyncio
import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.core.distribution.odd import serve
from tests.faults.parts import leftovers
from tests.support.base import BaseLayout

ROOT = Path(__file__).parents[2]

SCRIPT = """
import asyncio, json, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job starts with it ignored
from benchmarks.ours import build
from prefect_environments.core import loop
{run}(build(json.loads(sys.argv[1])))
"""


def working_below(folder: Path) -> set[int]:
    """The processes whose working folder is below `folder`."""
    found = set()
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and (entry / "cwd").readlink().is_relative_to(folder):
                found.add(int(entry.name))
    return found


@pytest.mark.parametrize("how", ["asyncio.run", "loop.run"])
async def test_ctrl_c_while_uv_runs_ends_it_and_removes_its_folder(
    how: str, base_layout: BaseLayout, tmp_path: Path
) -> None:
    asked = asyncio.Event()

    async def never(request: web.Request) -> web.Response:
        asked.set()
        await asyncio.sleep(600)
        return web.Response(status=404)

    cache = tmp_path / "cache"
    async with serve(never) as index:
        order: dict[str, Any] = {
            "registry": f"oci:{tmp_path / 'images'}",
            "base": base_layout.reference,
            "name": "cancelled",
        }
        order |= {"requirements": ["alpha", f"--index-url http://{index.address}/simple/"], "cache": str(cache)}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", SCRIPT.format(run=how), json.dumps({**order, "versions": str(tmp_path / "v")})),
            cwd=ROOT,
            env={**os.environ, "UV_CACHE_DIR": str(tmp_path / "uv")},
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(60):
            await asked.wait()
            assert working_below(cache), "uv works in a folder of the cache"
            process.send_signal(signal.SIGINT)
            _, said = await process.communicate()
    assert process.returncode not in (0, None) and b"KeyboardInterrupt" in said
    assert working_below(cache) == set()
    assert leftovers(tmp_path) == [] and list((cache / "resolve").iterdir()) == []

"""Builds in processes of their own, for tests that end them: `python -m tests.faults.builder WORK.json`.

The work names a plan and how to treat it; a line of JSON on standard output tells how it went. Children are forked
from one process that has imported everything, so that a build starts at once.
"""

import asyncio
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from prefect_environments.core.build import converters
from prefect_environments.core.errors import PrefectEnvironmentsError
from prefect_environments.core.lock.model import Lock
from prefect_environments.core.registry_settings import RegistrySettings
from tests.faults.parts import plan_on, push, team

MARK = "TESTS_FAULTS_BUILDS"
"""A variable that all processes of these builds have, with the folder of their work."""


def build(work: dict[str, Any], images: str, folder: Path) -> dict[str, Any]:
    """One build in this process; gives digest and version, or the error."""
    plan = plan_on(work["base"], Lock.from_pylock(work["lock"]))
    workspace = team(RegistrySettings(images), folder / "versions", work.get("prefix", "environments"))
    try:
        record = asyncio.run(push(plan, workspace, Path(work.get("cache") or folder / "cache")))
    except PrefectEnvironmentsError as error:
        return {"error": type(error).__name__, "message": str(error)}
    return {"digest": record.digest, "version": record.version}


def forked(work: dict[str, Any], images: str, folder: Path) -> int:
    """Start a build in a child, which leaves what it gave in `result.json`; gives its process id."""
    child = os.fork()
    if child:
        return child
    try:
        result = build(work, images, folder)
        written = folder / f"written-{os.getpid()}.json"
        written.write_text(json.dumps(result))
        written.replace(folder / f"result-{os.getpid()}.json")  # the kill may come in the middle of writing
    finally:
        os._exit(0)


def finish(child: int, folder: Path) -> dict[str, Any]:
    os.waitpid(child, 0)
    path = folder / f"result-{child}.json"
    return json.loads(path.read_text()) if path.exists() else {"error": "killed"}


def kill_at_random(work: dict[str, Any]) -> list[dict[str, Any]]:
    """Kill builds at random points of their time, and build again in the same place."""
    chance = random.Random(work["seed"])
    calm = Path(work["folder"], "calm")
    calm.mkdir(parents=True)
    started = time.monotonic()
    done = finish(forked({**work, "prefix": "calm"}, _images(work, calm), calm), calm)
    usual = time.monotonic() - started
    results = [{**done, "after": usual}]
    for number in range(work["times"]):
        folder = Path(work["folder"], str(number))
        folder.mkdir()
        mine = {**work, "prefix": f"{work['prefix']}/{number}"}
        delay = chance.uniform(0, usual)
        child = forked(mine, _images(work, folder), folder)
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        first = finish(child, folder)
        if "digest" in first:  # it had ended: on a quieter machine, builds are sooner done
            usual = min(usual, delay)
        again = finish(forked(mine, _images(work, folder), folder), folder)
        results.append({**again, "killed": first.get("error") == "killed", "after": delay, "folder": str(folder)})
    return results


def at_once(work: dict[str, Any]) -> list[dict[str, Any]]:
    """Two builds at the same time in the same place, several times."""
    results = []
    for number in range(work["times"]):
        folder = Path(work["folder"], str(number))
        folder.mkdir(parents=True)
        children = [forked(work, _images(work, folder), folder) for _ in range(2)]
        results += [finish(child, folder) for child in children]
    return results


def _images(work: dict[str, Any], folder: Path) -> str:
    return str(work["images"] or f"oci:{folder / 'images'}")


def main() -> None:
    work = json.loads(Path(sys.argv[1]).read_text())
    os.environ[MARK] = work["folder"]
    if work.get("by processes"):
        converters.WORTH_IT = 0
    if work["do"] == "build":
        print(json.dumps(build(work, work["images"], Path(work["folder"]))))
    else:
        print(json.dumps({"kill": kill_at_random, "at once": at_once}[work["do"]](work)))


if __name__ == "__main__":
    main()

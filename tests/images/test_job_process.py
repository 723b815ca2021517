"""Jobs as processes: an environment with the lock's versions on this machine, and how its processes are stopped."""

import asyncio
import os
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from prefect_environments import EnvironmentDefinition, Workspace
from prefect_environments.core.environment import Environment
from prefect_environments.core.errors import JobError, JobFailed
from prefect_environments.core.jobs import run
from prefect_environments.core.jobs.local_environment import ensure_environment
from prefect_environments.core.lock.model import Lock
from prefect_environments.core.lock.target import Platform
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.site import open_site
from tests.images.conftest import Define
from tests.images.parts import Team, build
from tests.support.base import BaseLayout
from tests.support.channel import standard_channel
from tests.support.engine import DockerEngine
from tests.support.jobs import CALLER, JobBench, is_alive, until, use_engine

ROOT = Path(__file__).parents[2]
MINOR = f"{sys.version_info[0]}.{sys.version_info[1]}"

needs_the_bases_python = pytest.mark.skipif(
    MINOR != "3.11" and not os.access("/usr/bin/python3.11", os.X_OK),
    reason="the small base has Python 3.11, and this machine has none",
)
pytestmark = needs_the_bases_python


@pytest.fixture
async def bench(define: Define, tmp_path: Path) -> JobBench:
    """A workspace in folders, with the environment `demo` of `alpha`, `beta` and pip."""
    team = Team.on(tmp_path / "images", tmp_path / "versions")
    await build(team, define("alpha"), tmp_path / "cache")
    return JobBench(team, "demo", tmp_path, tmp_path / "cache", "local:process")


async def lock_of(bench: JobBench) -> Lock:
    record = await run.find_environment(bench.workspace, "demo")
    async with open_site(bench.workspace, cache=bench.cache) as site:
        return await run.lock_of(site, record)


async def test_a_script_runs_with_the_locks_versions_and_is_told_what_that_is_not(
    bench: JobBench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing of this process's own Python or of its keys reaches it, only the way to `Run`; the second run finds the
    environment."""
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.setenv("PREFECT_API_KEY", "planted-key-7d01")
    monkeypatch.setenv("PYTHONSTARTUP", "/somewhere/start.py")
    script = (
        "import alpha, beta, importlib.metadata, json, os, pathlib, sys\n"
        "names = sorted(f'{d.name}=={d.version}' for d in importlib.metadata.distributions())\n"
        "print('packages', *(n for n in names if not n.startswith('pip')))\n"
        "print('variables', *(n for n in os.environ if n.startswith(('PYTHON', 'PREFECT'))))\n"
        "print('prefix', sys.prefix == os.environ['VIRTUAL_ENV'], sys.prefix != sys.base_prefix)\n"
        "print('own', pathlib.Path('train.py').exists(), os.getpgid(0) == os.getpid())\n"
        "json.dump({'a': 1}, open('outputs/metrics.json', 'w'))\n"
        "pathlib.Path('train.py').write_text('damaged')\n"
        "os.system('alpha-say')\n"
    )
    result = await bench.run(script, cpus=2)
    assert set(bench.lines) == {
        "packages alpha==1.0 beta==1.0",
        "variables PYTHONNOUSERSITE PYTHONUNBUFFERED PREFECT_ENVIRONMENTS_JOB PYTHONPATH",
        "prefix True True",
        "own True True",
        "alpha says 1.0",
    }
    assert (result.target, result.metrics, [f.path for f in result.files]) == ("process", {"a": 1}, ["metrics.json"])
    assert Path(result.outputs, "metrics.json").stat().st_uid == CALLER[0]
    assert (bench.folder / "source" / "train.py").read_text() == script
    assert "the same versions" in caplog.text and "not in the same image" in caplog.text
    assert "cpus does not count" in caplog.text
    (ready,) = bench.cache.glob("environments/*/.prefect-environments.json")
    made = ready.stat().st_mtime_ns
    module = next(ready.parent.glob("lib/*/site-packages/beta.py"))
    assert module.stat().st_nlink > 1
    await bench.run(command=["alpha-say"])
    assert ready.stat().st_mtime_ns == made
    assert bench.left() == []


MAKE = """
import asyncio, logging, sys
from pathlib import Path
from prefect_environments.core.jobs import run
from prefect_environments.core.jobs.local_environment import ensure_environment
from prefect_environments.core.site import open_site
from tests.images.parts import Team

async def main(folder):
    team = Team.on(folder / "images", folder / "versions")
    async with open_site(team, cache=folder / "cache") as site:
        print(await ensure_environment(site, await run.lock_of(site, await team.versions.get("demo", 1))))

logging.basicConfig(level=logging.INFO)
asyncio.run(main(Path(sys.argv[1])))
"""


async def test_two_processes_make_one_environment(bench: JobBench) -> None:
    """At once, and where a killed one left half of it: one makes it, both use it, and it is whole."""

    async def make() -> tuple[str, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", MAKE, str(bench.folder), cwd=ROOT, stdout=-1, stderr=-1
        )
        out, err = await process.communicate()
        assert process.returncode == 0, err.decode()
        return out.decode().strip(), err.decode()

    both = await asyncio.gather(make(), make())
    (python,) = {out for out, _ in both}
    assert sum("making a local environment of 3 packages" in err for _, err in both) == 1
    ready = Path(python).parent.parent / ".prefect-environments.json"
    module = next(ready.parent.glob("lib/*/site-packages/beta.py"))
    ready.unlink()  # the mark is written last: this is what a killed process leaves
    module.unlink()
    assert (await make())[0] == python
    assert module.exists() and ready.exists()


def test_build_local_without_docker_gives_the_interpreter_of_a_local_environment(
    define: Define, tmp_path: Path
) -> None:
    workspace = Workspace.local(tmp_path / "workspace")
    environment = Environment.from_definition(define("alpha"))
    image = environment.build_local(workspace)
    here = environment.build_local(workspace, useDocker=False)
    assert here == image.model_copy(update={"python_path": here.python_path})
    said = subprocess.run([here.python_path, "-c", "import alpha; alpha.main()"], capture_output=True, check=True)
    assert said.stdout == b"alpha says 1.0\n"


async def test_a_cancelled_job_takes_its_children_along(bench: JobBench) -> None:
    command = "sleep 600 & echo $! > outputs/child; echo $$ > outputs/own; echo ready; wait"
    work = asyncio.create_task(bench.run(command=command))
    await bench.until_said("ready", work)
    (outputs,) = bench.outputs.glob("*/outputs")
    pids = [int((outputs / name).read_text()) for name in ("own", "child")]
    assert all(map(is_alive, pids))
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    await until(lambda: not any(map(is_alive, pids)))
    assert bench.left() == []


async def test_the_time_limit_ends_a_job_that_does_not_listen_and_what_it_started(bench: JobBench) -> None:
    command = "trap 'echo asked' TERM; sleep 600 & echo $! > outputs/child; while :; do wait; sleep 0.1; done"
    with pytest.raises(JobFailed, match=r"time limit of 0\.5 seconds"):
        await bench.run(command=command, time_limit_seconds=0.5)
    assert bench.lines[0] == "asked"
    (outputs,) = bench.outputs.glob("*/outputs")
    child = int((outputs / "child").read_text())
    await until(lambda: not is_alive(child))


async def test_what_a_job_leaves_running_ends_with_it(bench: JobBench) -> None:
    """It would hold the pipe open for ever, too."""
    result = await bench.run(command="sleep 600 & echo $! > outputs/child; echo done")
    assert bench.lines == ["done"]
    child = int(Path(result.outputs, "child").read_text())
    await until(lambda: not is_alive(child))


async def test_a_failing_script_is_an_error_with_its_last_lines(bench: JobBench) -> None:
    with pytest.raises(JobFailed, match=r"exit status 1;[\s\S]*ZeroDivisionError") as caught:
        await bench.run("print('before')\n1 / 0\n")
    assert caught.value.exit_code == 1 and "before" in str(caught.value)
    with pytest.raises(JobFailed, match="signal 9"):
        await bench.run("import os; os.kill(os.getpid(), 9)")
    with pytest.raises(JobError, match="no-such-program"):
        await bench.run(command=["no-such-program"])
    (bench.folder / "source" / "bootstrap.sh").write_text("exit 4\n")
    with pytest.raises(JobFailed, match=r"exit status 4;[\s\S]*bootstrap script bootstrap\.sh failed"):
        await bench.run(command=["true"], bootstrap="bootstrap.sh")
    assert bench.left() == []


async def test_what_this_machine_cannot_have_is_told(bench: JobBench) -> None:
    """Another Python, another architecture, a user-managed image: each by its name, and nothing is fetched."""
    lock = await lock_of(bench)
    other = "arm64" if platform.machine() == "x86_64" else "amd64"
    async with open_site(bench.workspace, cache=bench.cache) as site:
        for changed, told in (
            (replace(lock, target=replace(lock.target, python="3.99.1")), r"needs Python 3\.99"),
            (replace(lock, target=replace(lock.target, platform=Platform(other))), f"for linux/{other}"),
            (replace(lock, managed=False), "as it is"),
        ):
            with pytest.raises(JobError, match=told):
                await ensure_environment(site, changed)
    assert not list(bench.cache.glob("environments/*/bin"))


async def test_a_wheel_that_does_not_fit_this_machine_is_told_and_nothing_is_half_used(
    bench: JobBench, wheels: Path
) -> None:
    lock = await lock_of(bench)
    (alpha,) = (package for package in lock.packages if package.name == "alpha")
    bent = replace(alpha, filename="alpha-1.0-cp38-cp38-win_amd64.whl")
    packages = tuple(bent if package is alpha else package for package in lock.packages)
    async with open_site(bench.workspace, cache=bench.cache) as site:
        with pytest.raises(JobError, match="could not be made here"):
            await ensure_environment(site, replace(lock, packages=packages))
        python = await ensure_environment(site, lock)
    assert python.exists()
    assert digests.of_file(next(wheels.glob("alpha-*.whl"))) == f"sha256:{alpha.sha256}"


async def test_condas_packages_come_with_their_own_python(
    base_layout_without_python: BaseLayout, wheels: Path, tmp_path: Path
) -> None:
    """Linked by rattler from the lock's own archives, with pip's packages on top."""
    channel = standard_channel(tmp_path / "channel")
    definition = EnvironmentDefinition(
        name="demo",
        base_image=base_layout_without_python.reference,
        conda_channels=(str(channel.folder),),
        conda_dependencies=("python=3.11", "greeter", "pip"),
        requirements=("alpha",),
        find_links=(str(wheels),),
        no_index=True,
    )
    team = Team.on(tmp_path / "images", tmp_path / "versions")
    await build(team, definition, tmp_path / "cache")
    bench = JobBench(team, "demo", tmp_path, tmp_path / "cache", "local:process")
    script = "import os, sys, alpha; alpha.main(); print(sys.prefix == os.environ['CONDA_PREFIX'] == sys.base_prefix)"
    await bench.run(f"{script}\nos.system('greeter')\n")
    assert bench.lines[:2] == ["alpha says 1.0", "True"]
    assert len(bench.lines) == 3, bench.lines


async def test_a_user_managed_image_needs_docker(
    define: Define, open_base: str, tmp_path: Path, docker_engine: DockerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process cannot have it; in Docker its own Python runs the script."""
    team = Team.on(tmp_path / "images", tmp_path / "versions")
    wanted = define(base_image=open_base, user_managed=True, interpreter_path="/usr/bin/python3", find_links=())
    await build(team, wanted, tmp_path / "cache")
    bench = JobBench(team, "demo", tmp_path, tmp_path / "cache", "local:process")
    script = "import sys; print(sys.executable)"
    with pytest.raises(JobError, match="as it is"):
        await bench.run(script)
    use_engine(docker_engine, monkeypatch)
    bench.target = "local"
    await bench.run(script)
    assert bench.lines == ["/usr/bin/python3"]

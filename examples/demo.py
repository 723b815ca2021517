"""The main job, on this machine alone: a requirements file becomes a ready, registered image, and a model is trained.

Run it by `make demo`, or `make demo BASE=<image reference>`. Everything it makes is in the folder .demo.
"""

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
FOLDER = Path(".demo").absolute()

os.environ |= {
    "PREFECT_HOME": str(FOLDER / "prefect"),  # nothing of the user's own Prefect is read or written
    "PREFECT_PROFILES_PATH": str(FOLDER / "prefect" / "profiles.toml"),
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_LOGGING_SERVER_LEVEL": "CRITICAL",
    "DO_NOT_TRACK": "1",
}
os.environ.pop("PREFECT_API_URL", None)
(FOLDER / "prefect").mkdir(parents=True, exist_ok=True)

from rich.console import Console  # noqa: E402

from prefect_environments import Environment, JobResult, ReadyImage, ScriptRunConfig, Workspace  # noqa: E402
from prefect_environments.core.console import console_progress, megabytes  # noqa: E402
from prefect_environments.core.distribution.registry import Limits, Registry  # noqa: E402
from prefect_environments.core.errors import PrefectEnvironmentsError  # noqa: E402
from prefect_environments.core.progress import shown  # noqa: E402

PATIENCE = 5.0  # seconds for the public registry to answer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", help="base image, such as python:3.12-slim or oci:<folder>:<name>")
    arguments = parser.parse_args()
    console = Console(soft_wrap=True)
    try:
        base = arguments.base or choose_base(console)
        run(console, base)
    except (PrefectEnvironmentsError, subprocess.CalledProcessError) as error:
        console.print(f"[red]The demo stopped:[/] {error}", highlight=False)
        return 1
    return 0


def run(console: Console, base: str) -> None:
    build_environment = start_prefect(console)
    shutil.rmtree(FOLDER / "workspace", ignore_errors=True)  # each demo starts with nothing registered
    workspace = Workspace.local(FOLDER / "workspace")
    environment = Environment.from_pip_requirements("iris", HERE / "iris" / "requirements.txt")
    environment.docker.base_image = base
    first = build(console, build_environment, environment, workspace, "1. A requirements file becomes an image")
    build(console, build_environment, environment, workspace, "2. Again: the registry has it, nothing is built")
    more = FOLDER / "requirements.txt"
    more.write_text((HERE / "iris" / "requirements.txt").read_text() + "humanize\n")
    changed = Environment.from_pip_requirements("iris", more)
    changed.docker.base_image = base
    last = build(console, build_environment, changed, workspace, "3. One package more: only the change is paid")
    job = train(console, workspace, first)
    tag = last.image_hash.removeprefix("sha256:")
    console.print(f"\n[bold green]accuracy {job.metrics['accuracy']:.3f}[/]", highlight=False)
    console.print(
        f"\nVersions {first.version} and {last.version} of {first.name!r} are registered. To look into the image:\n"
        f"  skopeo inspect oci:{FOLDER / 'workspace' / 'images'}:environments/iris:{tag}",
        highlight=False,
    )


def start_prefect(console: Console) -> Callable[..., ReadyImage]:
    """Start Prefect's temporary server, which ends with this process, and give the flow."""
    console.print("Starting a temporary Prefect server …", style="dim")
    started = time.monotonic()
    from prefect import get_client  # noqa: PLC0415 - Prefect takes seconds to import

    from prefect_environments.flows import build_environment  # noqa: PLC0415

    with get_client(sync_client=True) as client:
        client.hello()
    console.print(f"… started in {time.monotonic() - started:.0f} s", style="dim", highlight=False)
    return build_environment


def build(
    console: Console, flow: Callable[..., ReadyImage], environment: Environment, workspace: Workspace, title: str
) -> ReadyImage:
    console.print(f"\n[bold]{title}[/]", highlight=False)
    started = time.monotonic()
    with console_progress(console) as progress, shown(progress):
        ready = flow(environment, workspace=workspace)
    for name, value in summary(ready, time.monotonic() - started).items():
        console.print(f"  [bold]{name:<10}[/] {value}", highlight=False)
    return ready


def train(console: Console, workspace: Workspace, ready: ReadyImage) -> JobResult:
    """Run examples/iris/train.py in the image: by Docker if there is an engine, else as a process."""
    from prefect_environments.flows import run_training_job  # noqa: PLC0415

    console.print("\n[bold]4. A training job in the first image[/]", highlight=False)
    started = time.monotonic()
    config = ScriptRunConfig(source_directory=str(HERE / "iris"), script="train.py", environment=ready)
    job: JobResult = run_training_job(config, workspace, outputs_directory=str(FOLDER / "jobs"))
    steps = ", ".join(f"{step} {value:.2f}" for step, value in job.seconds.items())
    rows = {
        "environment": f"{job.name}:{job.version}",
        "ran": "in Docker" if job.target == "docker" else "as a process: no Docker engine answers here",
        "outputs": f"{', '.join(file.path for file in job.files)} in {job.outputs}",
        "seconds": f"{time.monotonic() - started:.1f} with Prefect ({steps})",
    }
    for name, value in rows.items():
        console.print(f"  [bold]{name:<11}[/] {value}", highlight=False)
    return job


def summary(ready: ReadyImage, seconds: float) -> dict[str, str]:
    """The result for readers."""
    steps = ", ".join(f"{step} {value:.2f}" for step, value in ready.seconds.items())
    return {
        "version": f"{ready.name}:{ready.version}",
        "reference": ready.reference,
        "digest": ready.digest,
        "packages": f"{ready.packages}, image of {megabytes(ready.size)}",
        "layers": "all there: nothing built"
        if ready.reused
        else f"{ready.layers_new} new, {ready.layers_reused} reused",
        "sent": megabytes(ready.bytes_sent),
        "seconds": f"{seconds:.1f} with Prefect ({steps})",
    }


def choose_base(console: Console) -> str:
    """The public slim image of this machine's Python where it can be reached within seconds, else one made here."""
    public = f"python:{sys.version_info[0]}.{sys.version_info[1]}-slim"
    if asyncio.run(reachable(public)):
        console.print(f"Base image: {public}", highlight=False)
        return public
    layout = FOLDER / "base"
    if (layout / "index.json").exists():
        console.print(f"{public} cannot be reached; using the Debian base in {layout}", highlight=False)
        return f"oci:{layout}:base"
    console.print(f"{public} cannot be reached; making a small Debian base with mmdebstrap …", highlight=False)
    subprocess.run([sys.executable, str(HERE / "base" / "make_base.py"), str(layout)], check=True)
    return f"oci:{layout}:base"


async def reachable(image: str) -> bool:
    name, _, tag = image.partition(":")
    try:
        async with asyncio.timeout(PATIENCE), Registry("docker.io", limits=Limits(connect=3, attempts=1)) as registry:
            return await registry.repository(f"library/{name}").find_manifest(tag) is not None
    except (PrefectEnvironmentsError, TimeoutError):
        return False


if __name__ == "__main__":
    raise SystemExit(main())

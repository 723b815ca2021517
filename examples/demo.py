"""The main job, on this machine alone: a requirements file becomes a ready, registered image, three times over.

Run it by `make demo`, or `make demo BASE=<image reference>`. Everything it makes is in the folder .demo.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
FOLDER = Path(".demo").absolute()

os.environ |= {
    "PREFECT_HOME": str(FOLDER / "prefect"),  # nothing of the user's own Prefect is read or written
    "PREFECT_PROFILES_PATH": str(FOLDER / "prefect" / "profiles.toml"),
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "",
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_LOGGING_SERVER_LEVEL": "CRITICAL",
    "DO_NOT_TRACK": "1",
}
os.environ.pop("PREFECT_API_URL", None)
del os.environ["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"]

from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from prefect_environments import Environment, ReadyImage, Workspace  # noqa: E402
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
    console.print("Starting a temporary Prefect server …", style="dim")
    from prefect_environments.flows import build_environment  # noqa: PLC0415 - Prefect takes seconds to import

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
    console.print(
        f"\nVersions {first.version} and {last.version} of {first.name!r} are registered. The image layout is "
        f"{FOLDER / 'workspace' / 'images'}: look into it with `skopeo inspect oci:<layout>:environments/iris:<hash>`.",
        highlight=False,
    )


def build(console: Console, flow, environment: Environment, workspace: Workspace, title: str) -> ReadyImage:  # type: ignore[no-untyped-def]
    console.rule(title, align="left")
    started = time.monotonic()
    with console_progress(console) as progress, shown(progress):
        ready: ReadyImage = flow(environment, workspace=workspace)
    console.print(summary(ready, time.monotonic() - started))
    return ready


def summary(ready: ReadyImage, seconds: float) -> Table:
    """The result as a table for readers."""
    table = Table.grid(padding=(0, 2))
    steps = ", ".join(f"{step} {value:.2f}" for step, value in ready.seconds.items())
    rows = {
        "version": f"{ready.name}:{ready.version}",
        "reference": ready.reference,
        "digest": ready.digest,
        "packages": f"{ready.packages}, image of {megabytes(ready.size)}",
        "layers": "all there: nothing built" if ready.reused else f"{ready.layers_new} new, {ready.layers_reused} reused",
        "sent": megabytes(ready.bytes_sent),
        "seconds": f"{seconds:.1f} with Prefect ({steps})",
    }
    for name, value in rows.items():
        table.add_row(f"[bold]{name}[/]", value)
    return table


def choose_base(console: Console) -> str:
    """The public slim image of this machine's Python where it can be reached within seconds, else one made here."""
    public = f"python:{sys.version_info[0]}.{sys.version_info[1]}-slim"
    if asyncio.run(reachable(public)):
        console.print(f"Base image: {public}", highlight=False)
        return public
    layout = FOLDER / "base"
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

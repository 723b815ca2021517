"""`build_environment`: from a definition to a ready, registered image."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect import flow
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from prefect_environments.blocks import Workspace
from prefect_environments.core import steps
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.ready import ReadyImage
from prefect_environments.flows.form import ask_in_order
from prefect_environments.tasks import build_image, find_image, register_environment, resolve_environment
from prefect_environments.tasks.fleet import stored_lock
from prefect_environments.tasks.report import report_ready


def _run_name() -> str:
    environment: Any = flow_run.parameters.get("environment")
    name = environment.get("name") if isinstance(environment, dict) else getattr(environment, "name", None)
    return f"build-{name or 'environment'}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"


@flow(name="build-environment", flow_run_name=_run_name, persist_result=False)
def build_environment(
    environment: EnvironmentDefinition,
    workspace: Workspace,
    upgrade: bool = False,
    force: bool = False,
    image_hash: str = "",
) -> ReadyImage:
    """Turn an environment definition into a ready image: resolved, built only if the registry lacks it, registered.

    Args:
        environment: A base image or Dockerfile, and what lies on it: pip requirements, conda packages, or a lock.
        workspace: Where the image is pushed and registered: a saved Environments Workspace.
        upgrade: Resolve afresh instead of keeping the versions of the last registered lock.
        force: Assemble and push again even where the registry has the image.
        image_hash: Build the lock that build-environments kept under this hash, instead of resolving. For its runs.
    """
    clock = _Clock()
    if not (upgrade or force or image_hash):
        with clock.step("find"):
            ready = find_image.fn(environment, workspace)
        if ready is not None:
            return _told(ready.model_copy(update={"seconds": clock.seconds}))
    with clock.step("resolve"):
        lock = (
            stored_lock(image_hash, workspace)
            if image_hash
            else resolve_environment(environment, workspace, upgrade=upgrade)
        )
    with clock.step("build"):
        built = build_image(environment, lock, workspace, force=force)
    with clock.step("register"):
        version = register_environment(environment, built, workspace)
    return _told(steps.ready_image(version.to_record(), built, clock.seconds), built)


ask_in_order(build_environment, "workspace", "environment", "upgrade", "force", "image_hash")


def _told(ready: ReadyImage, built: steps.BuiltImage | None = None) -> ReadyImage:
    get_run_logger().info(
        "%s version %d %s: %s", ready.name, ready.version, "reused" if ready.reused else "built", ready.reference
    )
    report_ready(ready, built)
    return ready


class _Clock:
    """Seconds by step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 3)

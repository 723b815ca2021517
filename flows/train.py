"""`run_training_job`: a script in a ready image, which is built first where it is not there yet."""

import time
from typing import Annotated, Any

from prefect import flow
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Cancelled

from prefect_environments.blocks import EnvironmentVersion, Workspace
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import DefinitionError, JobCancelled
from prefect_environments.core.jobs import run
from prefect_environments.core.jobs.config import ScriptRunConfig
from prefect_environments.core.jobs.launcher import JobResult
from prefect_environments.flows.build import build_environment
from prefect_environments.flows.form import WithoutNone, ask_in_order
from prefect_environments.tasks import find_image
from prefect_environments.tasks.jobs import find_environment, run_job
from prefect_environments.tasks.pool import check_target


def _run_name() -> str:
    config: Any = flow_run.parameters.get("config")
    fields = config if isinstance(config, dict) else dict(config or {})
    environment: Any = flow_run.parameters.get("environment") or fields.get("environment")
    name = environment.get("name") if isinstance(environment, dict) else getattr(environment, "name", environment)
    known = str(name or "job").partition("@")[0].replace(":", "-")
    return f"train-{known}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"


@flow(name="run-training-job", flow_run_name=_run_name, persist_result=False)
def run_training_job(
    config: ScriptRunConfig,
    workspace: Workspace,
    environment: Annotated[EnvironmentVersion | None, WithoutNone()] = None,
    outputs_directory: str = "",
) -> JobResult:
    """Run a script or command in the ready image of an environment, which is built if it is not there yet.

    Args:
        config: What to run, and where.
        workspace: Where the environment is registered, or will be if the job's image is to be built.
        environment: The registered version to run in; none: the environment that the config names.
        outputs_directory: Folder that gets a folder of outputs for each job; empty, it is in the user's data folder.
            In a work pool: the storage block that keeps them, as TYPE/NAME.
    """
    run.check(config)
    if not config.is_local:
        check_target(config, workspace, outputs_directory)
    if environment is not None:
        config = _in_version(config, environment, workspace)
    version = _ready(config.environment, workspace)
    get_run_logger().info("running in %s version %d: %s", version.name, version.version, version.reference)
    try:
        result = run_job(config, version, workspace, outputs_directory or None)
    except JobCancelled as error:
        return Cancelled(message=str(error), data=error)  # type: ignore[return-value]  # callers get the error
    get_run_logger().info("job %s ended well, outputs: %s", result.id, result.outputs or "none")
    return result


ask_in_order(run_training_job, "workspace", "environment", "config", "outputs_directory")


def _in_version(config: ScriptRunConfig, version: EnvironmentVersion, workspace: Workspace) -> ScriptRunConfig:
    if config.environment:
        raise DefinitionError("the environment is given twice: as a version, and in the config; keep one of them")
    if version.workspace != workspace.name:
        raise DefinitionError(
            f"{version.name} version {version.version} is of the workspace {version.workspace!r}, not of "
            f"{workspace.name!r}; choose the workspace that it is registered in"
        )
    return config.on(version)


def _ready(environment: str | EnvironmentDefinition, workspace: Workspace) -> EnvironmentVersion:
    """The version to run in: looked up by its name, or of a definition, built where the registry lacks its image."""
    if isinstance(environment, str):
        return find_environment(environment, workspace)
    ready = find_image.fn(environment, workspace) or build_environment(environment, workspace)
    return find_environment(f"{ready.name}:{ready.version}", workspace)

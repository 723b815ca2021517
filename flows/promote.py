"""`promote_environment`: a registered version of one workspace becomes a version of another."""

import time
from typing import Annotated

from prefect import flow
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from pydantic import WithJsonSchema

from prefect_environments.blocks import Workspace
from prefect_environments.core.ready import ReadyImage
from prefect_environments.flows.form import ask_in_order
from prefect_environments.tasks.promote import promote_version

_NUMBER_OR_LABEL = WithJsonSchema(
    {"anyOf": [{"type": "string", "title": "Number or label"}, {"type": "integer", "title": "Number"}]}
)
"""In the form: one text field. Code may give the number as it is."""


def _run_name() -> str:
    name = flow_run.parameters.get("name") or "environment"
    return f"promote-{name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"


@flow(name="promote-environment", flow_run_name=_run_name, persist_result=False)
def promote_environment(  # noqa: PLR0917 - as the form asks
    name: str,
    source: Workspace,
    target: Workspace,
    version: Annotated[int | str, _NUMBER_OR_LABEL] = "",
    label: str = "",
    target_name: str = "",
) -> ReadyImage:
    """Copy a registered version from one workspace to another, such as from dev to prod. The image's digest stays.

    Lock, SBOM, definition and all else that is attached to the image go along. What the target's registry has is not
    sent. A version that the target has already is not registered again.

    Args:
        name: The environment's name in the source.
        source: The workspace that has the version, such as dev.
        target: The workspace that gets it, such as prod.
        version: Its number, or a label such as staging; empty takes the newest version.
        label: Label to set in the target when all is there, such as production; empty sets none.
        target_name: The environment's name in the target; empty keeps the name.
    """
    done = promote_version(name, source, target, version=version, label=label, target_name=target_name)
    get_run_logger().info(
        "%s version %d of %s %s: %s",
        done.record.name,
        done.record.version,
        target.name,
        "registered" if done.is_new else "was there already",
        done.record.reference,
    )
    return done.ready


ask_in_order(promote_environment, "source", "name", "version", "target", "label", "target_name")

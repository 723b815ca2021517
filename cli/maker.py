"""Who works at the command line, for the records and the history that it writes."""

import getpass
import os
from typing import Any

from prefect_environments.cli.command import NAME


def started_by(what: str) -> dict[str, Any]:
    """The command, the user, and the flow run in whose process it was started, if it was."""
    found = {"command": f"{NAME} {what}", "flow_run_id": os.environ.get("PREFECT__FLOW_RUN_ID", "")}
    try:
        found["user"] = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        found["user"] = f"uid {os.getuid()}"
    return {key: value for key, value in found.items() if value}

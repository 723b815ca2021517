"""What a job left behind: the files in its outputs folder, and the metrics that it wrote there."""

import json
import logging
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefect_environments.core.jobs.launcher import Number, OutputFile
from prefect_environments.core.redact import redact

METRICS = "metrics.json"
_FILES_MAX = 1000
_METRICS_MAX = 1024 * 1024
_COUNT_MAX = 1000

logger = logging.getLogger(__name__)


def list_files(folder: Path) -> tuple[OutputFile, ...]:
    """The files below a folder by path, at most a thousand; links are not followed."""
    found = []
    for root, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(root, name)
            status = path.lstat()
            if stat.S_ISREG(status.st_mode):
                found.append(OutputFile(path=path.relative_to(folder).as_posix(), size=status.st_size))
            if len(found) == _FILES_MAX:
                return tuple(found)
    return tuple(found)


def read_metrics(folder: Path) -> dict[str, Number]:
    """The numbers and texts of `metrics.json`, those of nested objects as `outer.inner`; empty where there is none.

    A file that is no such object is told in the log: a job is not failed by how it reports.
    """
    try:
        # a job could leave a link to a file that it may not read, but this process may
        descriptor = os.open(folder / METRICS, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return {}
    with os.fdopen(descriptor, "rb") as file:
        regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        content = file.read(_METRICS_MAX + 1) if regular else b""
    try:
        if len(content) > _METRICS_MAX:
            raise ValueError(f"it has more than {_METRICS_MAX} bytes")
        data = json.loads(content)
        if not isinstance(data, dict):
            raise ValueError("it is no JSON object")
        return {redact(name): value for name, value in list(_flat(data, ""))[:_COUNT_MAX]}
    except (ValueError, RecursionError) as error:
        logger.warning("the job's %s is not read: %s", METRICS, redact(str(error)))
        return {}


def _flat(data: dict[str, Any], prefix: str) -> Iterator[tuple[str, Number]]:
    for name, value in data.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, float) and not math.isfinite(value):
            yield f"{prefix}{name}", str(value)  # JSON of other programs has no such number
        elif isinstance(value, bool | int | float):
            yield f"{prefix}{name}", value
        elif value is not None:
            yield f"{prefix}{name}", redact(value if isinstance(value, str) else json.dumps(value))

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
PRECISE = 2**53
"""Integers beyond it are no numbers to many readers of JSON."""
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
            try:
                status = path.lstat()
            except OSError:  # gone, or not for us to see
                continue
            if stat.S_ISREG(status.st_mode):
                found.append(OutputFile(path=_name(path.relative_to(folder)), size=status.st_size))
            if len(found) == _FILES_MAX:
                return tuple(found)
    return tuple(found)


def _name(path: Path) -> str:
    """A path for readers: a job may use any bytes but two, line ends among them."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return redact("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text))


def read_metrics(folder: Path) -> dict[str, Number]:
    """The numbers and texts of `metrics.json`, those of nested objects as `outer.inner`; empty where there is none.

    A file that is no such object is told in the log: a job is not failed by how it reports.
    """
    try:
        # a job could leave a link to a file that it may not read, but this process may
        descriptor = os.open(folder / METRICS, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return {}
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return {}
    with os.fdopen(descriptor, "rb") as file:
        content = file.read(_METRICS_MAX + 1)
    try:
        if len(content) > _METRICS_MAX:
            raise ValueError(f"it has more than {_METRICS_MAX} bytes")
        data = json.loads(content)
        if not isinstance(data, dict):
            raise ValueError("it is no JSON object")
        return {_shown(name): value for name, value in list(_flat(data, ""))[:_COUNT_MAX]}
    except (ValueError, RecursionError) as error:
        logger.warning("the job's %s is not read: %s", METRICS, redact(str(error)))
        return {}


def _flat(data: dict[str, Any], prefix: str) -> Iterator[tuple[str, Number]]:
    for name, value in data.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif (isinstance(value, float) and not math.isfinite(value)) or (
            isinstance(value, int) and abs(value) > PRECISE
        ):
            yield f"{prefix}{name}", str(value)  # JSON of other programs has no such number
        elif isinstance(value, bool | int | float):
            yield f"{prefix}{name}", value
        elif value is not None:
            yield f"{prefix}{name}", _shown(value if isinstance(value, str) else json.dumps(value))


def _shown(text: str) -> str:
    """Without secrets, and without halves of characters, which JSON can hold and nothing after us can write down."""
    return redact(text.encode("utf-8", "replace").decode())

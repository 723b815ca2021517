"""The process behind `converters.py`: wheels become layers here while the process that started it downloads and sends.

Started as `python -P -c START FD`. Pickled messages, from and to its own parent only: on stdin the parent's `sys.path`,
then a `Job` each time; on the pipe FD what became of it.
"""

import os
import pickle
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from prefect_environments.core.build import recipe
from prefect_environments.core.build.convert import convert_wheels
from prefect_environments.core.build.layer import LayerBlob, Overlap
from prefect_environments.core.errors import PrefectEnvironmentsError
from prefect_environments.core.lock.model import LockedPackage
from prefect_environments.core.lock.target import Target

START = (
    "import pickle, sys; sys.path += [path for path in pickle.load(sys.stdin.buffer) if path not in sys.path]; "
    "from prefect_environments.core.build.convert_worker import serve; serve(int(sys.argv[1]))"
)
"""What the parent can import can be imported, after this interpreter's own: flows put their folders first, and modules
there may be called as those of the standard library are."""

RELEASE = recipe.VERSION, recipe.__file__

Done = tuple[LayerBlob, list[Overlap], dict[str, list[str]]]
"""What `convert_wheels` gives."""


@dataclass(frozen=True, slots=True)
class Job:
    """The wheels of a layer, as `convert_wheels` takes them, and the file that the layer is to be written to. All paths
    are absolute."""

    wheels: Sequence[tuple[LockedPackage, Path]]
    target: Target
    out: Path
    scratch: Path
    release: tuple[int, str] = RELEASE
    """Of the process that asks: another may be installed, or upgraded since that started."""


def serve(pipe: int) -> None:
    """Answer jobs until the process that asks is gone. Errors that are not of our tree are not sent, but end this
    process: a thread shall meet them where they can be understood."""
    jobs: SimpleQueue[Job] = SimpleQueue()
    threading.Thread(target=_read, args=(jobs,), daemon=True).start()
    try:
        with os.fdopen(pipe, "wb") as answers:
            while (job := jobs.get()).release == RELEASE:
                answers.write(pickle.dumps(_work(job)))
                answers.flush()
    finally:
        os._exit(1)


def _work(job: Job) -> Done | PrefectEnvironmentsError:
    try:
        with job.out.open("r+b") as out:
            return convert_wheels(job.wheels, job.target, out, job.scratch)
    except PrefectEnvironmentsError as error:
        return error


def _read(jobs: "SimpleQueue[Job]") -> None:
    """Jobs as they come. Where there is nobody any more to send some, end at once, even in the middle of one."""
    try:
        while True:
            jobs.put(pickle.load(sys.stdin.buffer))  # noqa: S301  # from the process that started this one
    finally:
        os._exit(0)

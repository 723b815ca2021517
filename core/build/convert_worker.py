"""The process behind `converters.py`: wheels become layers here while the process that started it downloads and sends.

Started as `python -P -c START`. Pickled messages, from its own parent only: on stdin `sys.path`, then a `Job` each
time; on stdout `Done`, or the error that the work ended with.
"""

import os
import pickle
import select
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from prefect_environments.core.build import recipe
from prefect_environments.core.build.convert import convert_wheels
from prefect_environments.core.build.layer import LayerBlob, Overlap
from prefect_environments.core.errors import PackageError
from prefect_environments.core.lock.model import LockedPackage
from prefect_environments.core.lock.target import Target

START = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from prefect_environments.core.build.convert_worker import serve; serve()"
)

Done = tuple[LayerBlob, list[Overlap], dict[str, list[str]]]
"""What `convert_wheels` gives."""


@dataclass(frozen=True, slots=True)
class Job:
    """The wheels of a layer, as `convert_wheels` takes them, and the file that the layer is to be written to."""

    wheels: Sequence[tuple[LockedPackage, Path]]
    target: Target
    out: Path
    scratch: Path
    recipe: int = recipe.VERSION
    """Of the process that asks: the package may have been upgraded since that started."""


def serve() -> None:
    """Answer jobs until stdin ends, or the process at its other end does."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints does not print into the answers
    threading.Thread(target=_watch, daemon=True).start()
    while True:
        try:
            job: Job = pickle.load(sys.stdin.buffer)  # noqa: S301  # from the process that started this one
        except EOFError:
            return
        if job.recipe != recipe.VERSION:
            return
        _answer(answers, _work(job))


def _work(job: Job) -> Done | Exception:
    try:
        with job.out.open("r+b") as out:
            return convert_wheels(job.wheels, job.target, out, job.scratch)
    except Exception as error:  # the parent raises it
        return error


def _answer(answers: BinaryIO, answer: Done | Exception) -> None:
    try:
        content = pickle.dumps(answer)
    except Exception:  # an error that holds something of this process
        content = pickle.dumps(PackageError(f"a wheel could not be converted: {answer!r:.2000}"))
    answers.write(content)
    answers.flush()


def _watch() -> None:
    """End at once when the parent is gone, even in the middle of a job: nobody waits for it."""
    poll = select.poll()
    poll.register(0, 0)  # tells of the other end's closing, and not of messages
    poll.poll()
    os._exit(0)

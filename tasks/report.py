"""What a run shows in the UI: progress while it works, a result table at the end."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import copy_context
from uuid import UUID

from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.context import FlowRunContext, TaskRunContext

from prefect_environments.core.build.inspection import ImageReport
from prefect_environments.core.console import megabytes
from prefect_environments.core.names import slug
from prefect_environments.core.progress import Both, Progress, current
from prefect_environments.core.ready import ReadyImage
from prefect_environments.core.steps import BuiltImage

_DOCKER_STEP = re.compile(r"(?:\[(?:\S+ )?|Step )0*(\d+)/0*([1-9]\d*)\b")
"""`[2/5] RUN …` or `[stage 2/5] RUN …` by BuildKit, `Step 2/5 : RUN …` by the classic builder."""
_EVERY = 2.0  # seconds between two updates: each is a call to the API


class RunProgress(Progress):
    """Counts, for the progress artifact."""

    def __init__(self) -> None:
        self.layers = self.done = self.reused = self.bytes = 0
        self.title = ""
        self.failed = False
        self._built = 0.0

    def step(self, name: str) -> None:
        if found := _DOCKER_STEP.match(name):
            self.title = name
            self._built = max(self._built, (int(found[1]) - 1) / int(found[2]))  # it only begins

    def planned(self, layers: int, download: int) -> None:
        self.layers = layers

    def layer(self, title: str, size: int, reused: bool) -> None:
        self.done += 1
        self.reused += reused

    def sent(self, size: int) -> None:
        self.bytes += size

    @property
    def percent(self) -> float:
        return 100.0 * (self.done / self.layers if self.layers else self._built)

    def __str__(self) -> str:
        if not self.layers:
            return f"{self.title or 'no layers to make'}, {megabytes(self.bytes)} sent"
        return f"{self.done} of {self.layers} packages ({self.reused} reused), {megabytes(self.bytes)} sent"


@contextmanager
def run_progress(title: str = "Assembling the image") -> Iterator[Progress]:
    """Progress that goes to the current run's progress artifact, beside what the caller already watches."""
    if FlowRunContext.get() is None and TaskRunContext.get() is None:
        yield current()
        return
    counts = RunProgress()
    artifact = create_progress_artifact(0.0, key="progress", description=title)
    stop = threading.Event()
    poller = threading.Thread(
        target=copy_context().run, args=(_poll, counts, artifact, stop), name="progress", daemon=True
    )
    poller.start()
    try:
        yield Both(counts, current())
    except BaseException:
        counts.failed = True
        raise
    finally:
        stop.set()
        poller.join(10)


def _poll(counts: RunProgress, artifact: UUID, stop: threading.Event) -> None:
    finished = False
    while not finished:
        finished = stop.wait(_EVERY)
        ended = finished and not counts.failed and counts.done >= counts.layers
        percent = 100.0 if ended else counts.percent
        update_progress_artifact(artifact, percent, description=str(counts))


def report_ready(ready: ReadyImage, built: BuiltImage | None = None) -> None:
    """The result as a markdown artifact of the current run; nothing outside of one."""
    if FlowRunContext.get() is None:
        return
    create_markdown_artifact(
        ready_markdown(ready, built),
        key=f"environment-{slug(ready.name)}"[:200],
        description=f"Ready image of {ready.name}, version {ready.version}",
    )


def report_image(report: ImageReport) -> None:
    """An inspection as a markdown artifact of the current run; nothing outside of one."""
    if FlowRunContext.get() is None and TaskRunContext.get() is None:
        return
    create_markdown_artifact(
        image_markdown(report), key=f"image-{report.digest[7:19]}", description=f"What is in {report.reference}"
    )


def image_markdown(report: ImageReport) -> str:
    """An inspection for readers: what is there, and what does not work without what is missing."""
    pythons = ", ".join(f"`{python.path}` {python.version}" for python in report.interpreters)
    lines = [
        f"# {report.reference}",
        "",
        f"`{report.digest}`",
        "",
        "| What | Value |",
        "|---|---|",
        f"| System | {report.system or 'not told'} |",
        f"| libc | {report.libc or 'none found'} |",
        f"| Python | {pythons or 'none found'} |",
        f"| Platform | {report.platform} |",
        f"| Size | {megabytes(report.size)} in {report.layers} layers |",
        "",
        "| Brings | Version | Where | Without it |",
        "|---|---|---|---|",
    ]
    for item in report.capabilities:
        state = f"{item.version or 'yes'} | {item.where} | |" if item.found else f"**missing** | | {item.without} |"
        lines.append(f"| {item.name} | {state}")
    return "\n".join(lines)


def ready_markdown(ready: ReadyImage, built: BuiltImage | None = None) -> str:
    """The result for readers: what to use, what it took, and every layer."""
    lines = [
        f"# {ready.name} version {ready.version}",
        "",
        "```",
        ready.reference,
        "```",
        "",
        "| What | Value |",
        "|---|---|",
        f"| Image | {_state(ready, built)} |",
        *([f"| Base | {_base(built)} |"] if built is not None else []),
        f"| Packages | {_packages(ready, built)} |",
        f"| Size | {megabytes(ready.size)} |",
        *([f"| Layers | {ready.layers_new} new, {ready.layers_reused} reused |"] if built and built.layers else []),
        *([] if ready.reused else [f"| Sent | {megabytes(ready.bytes_sent)} |"]),
        f"| Python | `{ready.python_path}` on {ready.platform} |",
        f"| Seconds | {', '.join(f'{step} {seconds:.1f}' for step, seconds in ready.seconds.items())} |",
    ]
    if built is not None and built.layers:
        lines += ["", "| Layer | Size | State |", "|---|--:|---|"]
        lines += [f"| {x.title} | {megabytes(x.size)} | {'reused' if x.reused else 'new'} |" for x in built.layers]
    if built is not None and built.overlaps:
        lines += ["", "Files of two packages (the later layer's is used):", ""]
        lines += [f"- `/{o.path}`: {o.loser}, **{o.winner}**" for o in built.overlaps[:50]]
    if built is not None and built.not_run:
        lines += [
            "",
            "Scripts of conda packages, which are not run:",
            "",
            *(f"- {line}" for line in built.not_run[:50]),
        ]
    return "\n".join(lines)


def _state(ready: ReadyImage, built: BuiltImage | None) -> str:
    if ready.reused:
        return "reused, nothing built"
    if built is None or built.lock.managed:
        return "built"
    return "built by its Dockerfile" if built.lock.base.of_dockerfile else "copied"


def _base(built: BuiltImage) -> str:
    """A Dockerfile's name in the lock is the hash of what went into it, which readers have no use for."""
    base = built.lock.base
    return f"{'an image of a Dockerfile' if base.of_dockerfile else f'`{base.name}`'} at `{base.digest}`"


def _packages(ready: ReadyImage, built: BuiltImage | None) -> str:
    if not ready.packages:
        return "none installed, the image is used as it is"
    conda = len(built.lock.conda) if built is not None else 0
    return f"{ready.packages}, {conda} of them conda's" if conda else f"{ready.packages}"

"""The task that promotes a version, and what it shows in the UI."""

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext, TaskRunContext

from prefect_environments.blocks import Workspace
from prefect_environments.core import loop, promote
from prefect_environments.core.console import megabytes
from prefect_environments.core.names import slug
from prefect_environments.core.progress import Progress
from prefect_environments.core.promotion import Promotion
from prefect_environments.core.site import open_site
from prefect_environments.tasks.provenance import current_origin
from prefect_environments.tasks.report import run_progress
from prefect_environments.tasks.site import is_transient

_HOW = {
    "there": "was there already",
    "mounted": "taken over: the registry had all of its layers",
    "imported": "imported by Azure",
    "sent": "copied through the worker",
    "stays": "stays where it is, as it is user-managed",
}


@task(
    name="promote-version",
    persist_result=False,
    cache_policy=NO_CACHE,
    retries=1,
    retry_delay_seconds=5,
    retry_condition_fn=is_transient,
)
def promote_version(
    name: str,
    source: Workspace,
    target: Workspace,
    version: int | str = "",
    *,
    label: str = "",
    target_name: str = "",
) -> Promotion:
    """Copy a version (a number, a label, or the newest) of `source` with its image to `target`; the digest stays.

    A version that the target has already comes back as it is. `label` is set to it in the target. Also a markdown
    artifact of the run. Raises what `core.promote.promote` says.
    """
    origin = current_origin()

    async def work(progress: Progress) -> Promotion:
        async with open_site(source) as giver, open_site(target, progress=progress) as taker:
            return await promote.promote(
                giver, taker, name, version, label=label, target_name=target_name, created_by=origin
            )

    with run_progress("Promoting the image") as progress:
        done = loop.run(work(progress))
    report_promotion(done)
    return done


def report_promotion(done: Promotion) -> None:
    """The promotion as a markdown artifact of the current run; nothing outside of one."""
    if FlowRunContext.get() is None and TaskRunContext.get() is None:
        return
    create_markdown_artifact(
        promotion_markdown(done),
        key=f"promote-{slug(done.record.name)}"[:200],
        description=f"{done.record.name} version {done.record.version} of {done.record.workspace}",
    )


def promotion_markdown(done: Promotion) -> str:
    """A promotion for readers: where the version came from, and what it took."""
    record, source = done.record, done.source
    lines = [
        f"# {record.name} version {record.version} of {record.workspace}",
        "",
        f"`{record.reference}`",
        "",
        "| What | Value |",
        "|---|---|",
        f"| From | {source.name} version {source.version} of {source.workspace} |",
        f"| Version | {'registered now' if done.is_new else 'was registered already'} |",
        f"| Image | {_HOW[done.how]} |",
        f"| Layers | {done.layers_new} sent, {done.layers_reused} were there |",
        f"| Sent | {megabytes(done.bytes_sent)} of {megabytes(record.size)} |",
        f"| Attached | {done.attached} artifacts |",
        *([f"| Label | {done.label} |"] if done.label else []),
        f"| Seconds | {', '.join(f'{step} {seconds:.1f}' for step, seconds in done.seconds.items())} |",
    ]
    return "\n".join([*lines, *(line for note in done.notes for line in ("", note))])

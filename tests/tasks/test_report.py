"""What a run shows of each kind of environment: tables and progress."""

from dataclasses import replace

import pytest

from prefect_environments import ReadyImage
from prefect_environments.core.lock.model import Lock, LockedBase, LockedCondaPackage, LockedPackage
from prefect_environments.core.lock.target import Platform, Target
from prefect_environments.core.oci.descriptor import IMAGE_MANIFEST, Descriptor
from prefect_environments.core.steps import BuiltImage
from prefect_environments.tasks.report import RunProgress, ready_markdown

DIGEST = f"sha256:{'a' * 64}"
TARGET = Target("3.11.2", "/usr/bin/python3", "glibc", "2.36", Platform())
DOCKERFILE = LockedBase(f"dockerfile:{'b' * 64}", DIGEST)
IMAGE = LockedBase("registry.example.com/base:1", DIGEST)
AS_IT_IS = Lock(IMAGE, TARGET, (), managed=False)
WHEEL = LockedPackage("spam", "1.0", "spam-1.0-py3-none-any.whl", "c" * 64)
CONDA = LockedCondaPackage("zlib", "1.3", "h0_0", "linux-64", "zlib-1.3-h0_0.conda", "d" * 64)


def table(lock: Lock, *, reused: bool) -> str:
    """The table of a build that gave this lock's image."""
    built = BuiltImage(Descriptor(IMAGE_MANIFEST, DIGEST, 100), DIGEST, lock, reused, 1000, f"example.com/a@{DIGEST}")
    ready = ReadyImage(
        reference=built.reference,
        name="demo",
        version=1,
        digest=DIGEST,
        image_hash=DIGEST,
        platform="linux/amd64",
        python_path="python",
        reused=reused,
        packages=len(lock.packages) + len(lock.conda),
    )
    return ready_markdown(ready, built)


@pytest.mark.parametrize(
    ("lock", "reused", "says"),
    [
        (AS_IT_IS, True, ("| Image | reused, nothing built |", "| Base | `registry.example.com/base:1` at")),
        (AS_IT_IS, False, ("| Image | copied |",)),
        (replace(AS_IT_IS, base=DOCKERFILE), False, ("| Image | built by its Dockerfile |",)),
        (Lock(DOCKERFILE, TARGET, (WHEEL,)), False, ("| Image | built |", "| Base | an image of a Dockerfile at")),
        (Lock(IMAGE, TARGET, (WHEEL,), conda=(CONDA,)), False, ("| Packages | 2, 1 of them conda's |",)),
    ],
)
def test_the_table_says_where_the_image_comes_from(lock: Lock, reused: bool, says: tuple[str, ...]) -> None:
    found = table(lock, reused=reused)
    assert all(line in found for line in says), found
    assert "| Layers |" not in found  # none were looked at
    assert ("none installed" in found) == (not lock.managed)


def test_progress_counts_the_steps_of_a_dockerfile_by_both_builders() -> None:
    """A step that only begins is not done; a title with no numbers moves nothing."""
    for title in ("[stage-1 2/4] RUN x", "[2/4] RUN x", "Step 2/4 : RUN x"):
        progress = RunProgress()
        progress.step("docker build")
        assert (progress.percent, str(progress)) == (0, "no layers to make, 0 B sent")
        progress.step(title)
        assert (progress.percent, str(progress)) == (25, f"{title}, 0 B sent")


def test_progress_counts_layers_as_soon_as_there_are_some() -> None:
    progress = RunProgress()
    progress.step("[4/4] RUN x")
    progress.planned(4, 0)
    progress.layer("spam 1.0", 10, reused=True)
    assert (progress.percent, str(progress)) == (25, "1 of 4 packages (1 reused), 0 B sent")

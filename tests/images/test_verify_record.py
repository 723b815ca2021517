"""What a version's record says is looked at, whoever wrote it; and this machine's own troubles are no findings."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import StorageError
from tests.images import test_verify as parts
from tests.images.parts import Team, build
from tests.images.test_verify import Scene, rewrite
from tests.support.registry import Registry
from tests.support.wheels import make_wheel, serve_index

scene = parts.scene


@pytest.mark.parametrize(
    ("field", "value", "check", "says"),
    [
        ("python_path", "/tmp/other/python", "lock", "the record says /tmp/other/python"),
        ("packages", 99, "lock", "the record says 99"),
    ],
)
async def test_what_the_record_tells_of_the_image_is_looked_at(
    scene: Scene, field: str, value: str | int, check: str, says: str
) -> None:
    """Jobs start the interpreter that the record names."""
    rewrite(scene, sealed=True, **{field: value})
    wrong = await scene.wrong()
    assert says in wrong[check]


async def test_a_hash_by_which_builds_of_another_definition_find_the_version_is_found(
    team: Team, open_registry: Registry, open_base: str, tmp_path: Path
) -> None:
    """Where the definition says all by itself; where the workspace's defaults count, that is said and nothing more."""
    folder = tmp_path / "index"
    for name in ("pip", "alpha"):
        make_wheel(folder, name, "1.0")
    with serve_index(folder) as index:
        wanted = EnvironmentDefinition(name="demo", requirements=("alpha",), index_url=index.url, base_image=open_base)
        own = Scene(team, open_registry, tmp_path, await build(team, wanted, tmp_path / "cache"))
        assert (await own.verify()).ok
        rewrite(own, sealed=True, definition_hash=f"sha256:{'0' * 64}")
        assert "the record says sha256:000" in (await own.wrong())["definition"]


async def test_a_hash_that_the_workspaces_defaults_decide_is_said_to_be_unknown(scene: Scene) -> None:
    rewrite(scene, sealed=True, definition_hash=f"sha256:{'0' * 64}")
    found = await scene.verify()
    assert found.ok and "or the record was altered" in dict(found.skipped)["definition"]


@contextmanager
def small_files() -> Iterator[None]:
    """No file may become larger than a megabyte, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_full_disk_here_is_an_error_and_no_finding(scene: Scene) -> None:
    """The image is sound; who reads of a failed check would build it anew."""
    with small_files(), pytest.raises(StorageError, match="File too large"):
        await scene.verify(full=True)

"""More packages than layers: an image stays below what engines mount, and an added package costs its bin."""

import shutil
from pathlib import Path

from tests.images.conftest import Define
from tests.images.parts import Team, build, conforms, read_image, repository_of
from tests.support.engine import DockerEngine
from tests.support.wheels import make_wheel

COUNT = 130


async def test_130_packages_share_100_layers(
    *, team: Team, define: Define, open_base: str, wheels: Path, docker_engine: DockerEngine, tmp_path: Path
) -> None:
    """The image runs, everything in it is importable, and one package more changes a few small layers at most."""
    folder = tmp_path / "index"
    names = [f"small{number:03}" for number in range(COUNT)]
    for name in [*names, "onemore"]:
        make_wheel(folder, name, "1.0")
    shutil.copy(next(wheels.glob("pip-*")), folder)
    links = {"base_image": open_base, "find_links": (str(folder),)}
    built = await build(team, define(*names, **links), tmp_path / "cache")
    async with repository_of(built.ready.reference) as (repository, digest):
        manifest, _ = await read_image(repository, digest)
    assert len(manifest.layers) == 100
    await conforms(
        built.ready.reference, tmp_path / "conforms", engine=docker_engine, check=f"import {', '.join(names)}"
    )
    more = await build(team, define(*names, "onemore", **links), tmp_path / "empty-cache")
    changed = [layer for layer in more.image.layers if not layer.reused]  # type: ignore[union-attr]
    assert any("onemore 1.0" in layer.packages for layer in changed)
    # its own bin, and two packages that give up a layer for it
    assert len(changed) <= 2 and sum(len(layer.packages) for layer in changed) <= 8
    assert len([layer for layer in more.image.layers if layer.reused]) >= 98  # type: ignore[union-attr]

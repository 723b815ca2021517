"""Every way to an image goes through the same readers: `validate`, skopeo, umoci and a Docker engine.

A new way to make images is one more function in `WAYS`.
"""

import os
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from prefect_environments.core.build import plan
from prefect_environments.core.copy import copy_image
from prefect_environments.core.oci import descriptor as types
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.image import ImageManifest
from tests.images.conftest import Define
from tests.images.parts import Outcome, Team, build, conforms, push_with_skopeo, read_image, repository_of, tool
from tests.support.base import BaseLayout
from tests.support.engine import DockerEngine
from tests.support.registry import Registry
from tests.support.wheels import make_wheel


@dataclass(frozen=True)
class Ground:
    """What images are made of and where they go. `team` is on the registry, which has the base as `open_base`."""

    team: Team
    define: Define
    registry: Registry
    open_base: str
    base: BaseLayout
    wheels: Path
    folder: Path
    patch: pytest.MonkeyPatch
    conda_channel: Path
    bare: BaseLayout

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    def index(self) -> Path:
        """A folder of the test's own with pip's wheel."""
        folder = self.folder / "index"
        folder.mkdir()
        shutil.copy(next(self.wheels.glob("pip-*")), folder)
        return folder


@dataclass(frozen=True)
class Made:
    """An image by digest; `tag` is what a layout has it under, which skopeo cannot address by digest."""

    reference: str
    check: str = "import alpha"
    tag: str = ""
    managed: bool = True


async def on_a_layout(ground: Ground) -> Made:
    team = Team.on(ground.folder / "images", ground.folder / "versions")
    built = await build(team, ground.define("alpha"), ground.cache)
    return Made(built.ready.reference, tag=digests.hex_of(built.ready.image_hash))


async def on_a_registry_with_the_base_mounted(ground: Ground) -> Made:
    """Where the base is another repository of that registry."""
    built = await build(ground.team, ground.define("alpha", base_image=ground.open_base), ground.cache)
    assert not _base_sent(built)
    return Made(built.ready.reference)


async def with_no_packages_but_pip_on_a_docker_schema_2_base(ground: Ground) -> Made:
    """The base's manifest has Docker's media types; the image's has OCI's, for the same layers."""
    target = ground.registry.repository_url("images/schema-2:1")
    tool(
        "skopeo", "copy", "-q", "--format=v2s2", "--dest-tls-verify=false", ground.base.reference, f"docker://{target}"
    )
    async with repository_of(target) as (repository, tag):
        assert (await repository.get_manifest(tag)).descriptor.media_type == types.DOCKER_MANIFEST
    built = await build(ground.team, ground.define(base_image=target), ground.cache)
    return Made(built.ready.reference, "import pip")


async def with_packages_that_share_layers(ground: Ground) -> Made:
    """Past the budget, which is set low here: many layers are `test_budget`'s."""
    ground.patch.setattr(plan, "BUDGET", 4)
    names = ("alpha", "beta", "gamma", "delta")
    built = await build(ground.team, ground.define(*names, base_image=ground.open_base), ground.cache)
    assert any(len(layer.packages) > 1 for layer in built.image.layers)  # type: ignore[union-attr]
    return Made(built.ready.reference, f"import {', '.join(names)}")


async def with_odd_members_and_files_that_two_packages_bring(ground: Ground) -> Made:
    """Empty files, names that need pax records, content that does not shrink and much that does; a file in two
    layers, and a file of one package that is a folder of the other."""
    folder, long = ground.index(), "/".join(["deep" * 20] * 4)
    files = {"odd/__init__.py": b"", f"odd/{long}/end.txt": b"far down\n", "odd/naïve-雪.txt": "雪\n".encode()}
    make_wheel(folder, "odd", "1.0", {**files, "both.py": b"owner = 'odd'\n", "odd/noise.bin": os.urandom(70_000),
                                      "odd/zeros.bin": bytes(3_000_000), "clash": b"a file\n"})  # fmt: skip
    make_wheel(folder, "two", "1.0", {"both.py": b"owner = 'two'\n", "clash/__init__.py": b"kind = 'folder'\n"})
    wanted = ground.define("odd", "two", base_image=ground.open_base, find_links=(str(folder),))
    built = await build(ground.team, wanted, ground.cache)
    assert built.image is not None and built.image.overlaps
    check = (
        "import both, clash, odd, pathlib; here = pathlib.Path(odd.__file__).parent;"
        "assert (both.owner, clash.kind) == ('two', 'folder');"
        f"assert (here / {long!r} / 'end.txt').read_text() == 'far down\\n';"
        "assert (here / 'na\\xefve-\\u96ea.txt').read_bytes() == b'\\xe9\\x9b\\xaa\\n';"
        "assert (here / 'zeros.bin').read_bytes() == bytes(3_000_000)"
    )
    return Made(built.ready.reference, check)


async def with_layers_of_an_earlier_image(ground: Ground) -> Made:
    """By a worker with an empty disk: what it has not seen is taken by descriptor."""
    first = await build(ground.team, ground.define("alpha", base_image=ground.open_base), ground.cache)
    wanted = ground.define("alpha", "gamma", base_image=ground.open_base)
    built = await build(ground.team, wanted, ground.folder / "empty")
    assert built.sent_layers == ["gamma 1.0"] and first.ready.digest != built.ready.digest
    return Made(built.ready.reference, "import alpha, gamma")


async def on_a_ready_image(ground: Ground) -> Made:
    base = await build(ground.team, ground.define("gamma", base_image=ground.open_base), ground.cache)
    wanted = ground.define("alpha", name="on-ready", base_image=base.ready.reference)
    built = await build(ground.team, wanted, ground.cache)
    return Made(built.ready.reference)


async def copied_to_a_registry(ground: Ground) -> Made:
    """What `push_image` does, with what is attached to the image."""
    here = Team.on(ground.folder / "images", ground.folder / "versions")
    built = await build(here, ground.define("alpha"), ground.cache)
    settings, path = ground.team.registry_settings, f"{ground.team.repository_prefix}/copied"
    copied = await copy_image(built.ready.reference, here.registry_settings, settings, path, here.secrets)
    assert copied.rpartition("@")[2] == built.ready.digest
    return Made(copied)


async def with_conda_packages_and_a_wheel_on_a_base_without_python(ground: Ground) -> Made:
    wanted = ground.define(
        "alpha",
        base_image=ground.bare.reference,
        conda_channels=(str(ground.conda_channel),),
        conda_dependencies=("python", "greeter", "native", "prefixed", "clobber-a", "clobber-b"),
    )
    built = await build(ground.team, wanted, ground.cache)
    return Made(built.ready.reference, "import alpha, greeter, native, sys; assert sys.prefix == '/opt/env'")


async def with_compiled_bytecode(ground: Ground) -> Made:
    wanted = ground.define("alpha", base_image=ground.open_base, compile_bytecode=True)
    built = await build(ground.team, wanted, ground.cache)
    return Made(built.ready.reference, "import alpha, pathlib; assert pathlib.Path(alpha.__cached__).is_file()")


async def on_a_dockerfile(ground: Ground) -> Made:
    text = f"FROM {ground.open_base}\nRUN echo made > /made.txt\n"
    built = await build(ground.team, ground.define("alpha", base_image="", dockerfile=text), ground.cache)
    return Made(built.ready.reference, "import alpha; assert open('/made.txt').read() == 'made\\n'")


async def by_docker_alone(ground: Ground) -> Made:
    context = ground.folder / "context"
    context.mkdir()
    (context / "Dockerfile").write_text(f"FROM {ground.open_base}\nCOPY . /srv\n")
    wanted = ground.define(base_image="", build_context=str(context), user_managed=True, find_links=(), no_index=False)
    built = await build(ground.team, wanted, ground.cache)
    return Made(built.ready.reference, "open('/srv/Dockerfile')", managed=False)


def _base_sent(built: Outcome) -> bool:
    assert built.image is not None
    return any(layer.title.startswith("base ") and not layer.reused for layer in built.image.layers)


WAYS: list[Callable[[Ground], Awaitable[Made]]] = [
    on_a_layout,
    on_a_registry_with_the_base_mounted,
    with_no_packages_but_pip_on_a_docker_schema_2_base,
    with_packages_that_share_layers,
    with_odd_members_and_files_that_two_packages_bring,
    with_layers_of_an_earlier_image,
    on_a_ready_image,
    copied_to_a_registry,
    with_conda_packages_and_a_wheel_on_a_base_without_python,
    with_compiled_bytecode,
    on_a_dockerfile,
    by_docker_alone,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__.replace("_", " "))
async def test_every_reader_takes_an_image_made(
    *,
    way: Callable[[Ground], Awaitable[Made]],
    team: Team,
    define: Define,
    open_registry: Registry,
    open_base: str,
    base_layout: BaseLayout,
    wheels: Path,
    build_engine: DockerEngine,
    conda_channel: Path,
    bare: BaseLayout,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ground = Ground(
        team, define, open_registry, open_base, base_layout, wheels, tmp_path, monkeypatch, conda_channel, bare
    )
    made = await way(ground)
    layout = f"{made.reference.rpartition('@')[0]}:{made.tag}" if made.tag else ""
    scratch = tmp_path / "conforms"
    if layout:
        await conforms(made.reference, scratch, layout=layout)
        pushed = push_with_skopeo(layout, open_registry.repository_url(f"{team.repository_prefix}/from-layout:1"))
        build_engine.pull(pushed)
        build_engine.run(pushed, "python", "-c", made.check)
    else:
        await conforms(made.reference, scratch, engine=build_engine, check=made.check, managed=made.managed)
    async with repository_of(made.reference) as (repository, digest):
        manifest, _ = await read_image(repository, digest)
    assert_is_oci(manifest)


def assert_is_oci(manifest: ImageManifest) -> None:
    """Media types of the OCI image specification only, whatever the base's are."""
    assert manifest.config.media_type == types.IMAGE_CONFIG
    assert {layer.media_type for layer in manifest.layers} <= {types.LAYER_GZIP, types.LAYER_TAR}

"""Base images: picked by platform, by tag and by digest, from this registry and others, and refused with a reason."""

import json
from pathlib import Path

import pytest

from prefect_environments.core.distribution.registry import Registry as Client
from prefect_environments.core.errors import BaseImageError, NotFound, NotSupportedYet, RegistryAuthError
from prefect_environments.core.oci import descriptor as types
from prefect_environments.core.oci.layout import Layout
from prefect_environments.core.registry_settings import RegistrySettings
from prefect_environments.core.versions import FolderVersionStore
from tests.images.conftest import Define
from tests.images.parts import (
    Secrets,
    Team,
    build,
    conforms,
    derive,
    push_with_skopeo,
    read_image,
    requests_of,
    uploads,
)
from tests.support.base import BaseLayout
from tests.support.engine import DockerEngine
from tests.support.registry import Registry

NAMED = {"base_image_username": "secret:base-user", "base_image_password": "secret:base-password"}


async def push_index(registry: Registry, path: str, platforms: dict[str, BaseLayout]) -> str:
    """An index of one image for each architecture in the repository `path`; gives it by tag."""
    async with Client(registry.address) as client:
        repository, entries = client.repository(path), []
        for architecture, layout in platforms.items():
            layout.push(registry.repository_url(f"{path}:{architecture}"))
            manifest = (await repository.get_manifest(architecture)).descriptor
            entries.append({**manifest.to_json(), "platform": {"os": "linux", "architecture": architecture}})
        index = {"schemaVersion": 2, "mediaType": types.IMAGE_INDEX, "manifests": entries}
        await repository.put_manifest(json.dumps(index).encode(), types.IMAGE_INDEX, tag="1")
    return registry.repository_url(f"{path}:1")


async def test_the_platform_is_picked_from_an_index(
    *,
    team: Team,
    define: Define,
    open_registry: Registry,
    base_layout: BaseLayout,
    base_layout_without_python: BaseLayout,
    tmp_path: Path,
) -> None:
    """The lock pins the image, not the index; the other image has no Python, so taking it would fail."""
    index = await push_index(open_registry, "images/index", {"arm64": base_layout_without_python, "amd64": base_layout})
    built = await build(team, define("beta", base_image=index), tmp_path / "cache")
    assert built.lock is not None
    assert (built.lock.base.digest, built.lock.base.name) == (base_layout.digest, index)


async def test_a_platform_that_the_base_lacks_is_named(
    team: Team, define: Define, open_registry: Registry, base_layout: BaseLayout, tmp_path: Path
) -> None:
    """Of an index with what it has instead, and of a single image by its config; a list of platforms is refused."""
    index = await push_index(open_registry, "images/amd64-only", {"amd64": base_layout})
    for base, there in ((index, "it has linux/amd64"), (base_layout.reference, "is for linux/amd64")):
        with pytest.raises(BaseImageError, match=there):
            await build(team, define("beta", base_image=base, platform="linux/arm64"), tmp_path / "cache")
    with pytest.raises(NotSupportedYet, match="one image is for one platform"):
        define("beta", platform="linux/amd64,linux/arm64")


async def test_a_base_without_python_is_refused_with_advice(
    team: Team, define: Define, base_layout_without_python: BaseLayout, tmp_path: Path
) -> None:
    with pytest.raises(BaseImageError, match="Python") as refused:
        await build(team, define("beta", base_image=base_layout_without_python.reference), tmp_path / "cache")
    assert "base" in str(refused.value) and await team.versions.names() == []


async def test_a_base_that_does_not_exist_is_named(team: Team, define: Define, open_registry: Registry) -> None:
    missing = open_registry.repository_url("images/no-such-base:1")
    with pytest.raises(NotFound, match="images/no-such-base:1"):
        await build(team, define("beta", base_image=missing), Path("/nonexistent/never-used"))


async def test_a_base_in_the_same_registry_is_mounted(
    fresh_registry: Registry, base_layout: BaseLayout, define: Define, tmp_path: Path
) -> None:
    """Its layers are looked into once, to find Python, and are not sent; nor looked into by the next worker."""
    base = fresh_registry.repository_url("base:1")
    base_layout.push(base)
    (layer,) = (await read_image(Layout(base_layout.folder).repository(""), "base"))[0].layers
    team = Team.on(fresh_registry, tmp_path / "versions")
    read = f"GET /v2/base/blobs/{layer.digest}"
    with requests_of(fresh_registry) as seen:
        built = await build(team, define("beta", base_image=base), tmp_path / "cache")
    assert seen.count(read) == 1
    # beta, pip, the empty environment, config, three attachments and their empty config
    assert uploads(seen, "environments/demo") == 8
    assert built.image is not None and built.image.bytes_sent < layer.size
    with requests_of(fresh_registry) as seen:
        await build(team, define("gamma", name="other", base_image=base), tmp_path / "empty-cache")
    assert seen.count(read) == 0 and uploads(seen, "environments/other") == 7


async def test_a_base_in_a_closed_registry_comes_by_secret_references(
    *,
    team: Team,
    define: Define,
    basic_registry: Registry,
    base_layout: BaseLayout,
    docker_engine: DockerEngine,
    tmp_path: Path,
) -> None:
    """Streamed from one registry into the other; the stored record has the references only."""
    target = basic_registry.repository_url("images/closed-base:1")
    base_layout.push(target, username=basic_registry.username, password=basic_registry.password)
    secrets = Secrets({"base-user": basic_registry.username, "base-password": basic_registry.password})
    named = Team(team.registry_settings, team.versions, repository_prefix=team.repository_prefix, secrets=secrets)
    built = await build(named, define("alpha", base_image=target, **NAMED), tmp_path / "cache")
    await conforms(built.ready.reference, tmp_path / "conforms", engine=docker_engine, check="import alpha")
    record = await team.versions.get("demo", 1)
    assert record.definition["base_image_password"] == "secret:base-password"
    assert basic_registry.password not in str(record)


async def test_wrong_credentials_of_a_base_are_told_without_them(
    team: Team, define: Define, basic_registry: Registry, base_layout: BaseLayout, tmp_path: Path
) -> None:
    target = basic_registry.repository_url("images/closed-base:2")
    base_layout.push(target, username=basic_registry.username, password=basic_registry.password)
    secrets = Secrets({"base-user": "ann", "base-password": "wrong-password-77"})
    named = Team(team.registry_settings, team.versions, repository_prefix=team.repository_prefix, secrets=secrets)
    with pytest.raises(RegistryAuthError) as refused:
        await build(named, define("alpha", base_image=target, **NAMED), tmp_path / "cache")
    assert basic_registry.address in str(refused.value) and "wrong-password-77" not in str(refused.value)
    assert await team.versions.names() == []


async def test_a_base_by_digest_gives_the_layers_of_the_base_by_tag(
    team: Team, define: Define, open_base: str, base_layout: BaseLayout, tmp_path: Path
) -> None:
    by_tag = await build(team, define("beta", base_image=open_base), tmp_path / "cache")
    pinned = f"{open_base.rpartition(':')[0]}@{base_layout.digest}"
    by_digest = await build(team, define("beta", name="pinned", base_image=pinned), tmp_path / "cache")
    assert by_tag.lock is not None and by_digest.lock is not None
    assert by_tag.lock.base.digest == by_digest.lock.base.digest == base_layout.digest
    assert by_digest.lock.base.name == pinned.partition("@")[0]
    assert by_digest.sent_layers == [f"empty environment for Python {by_digest.lock.target.python}"]


async def test_a_moved_base_tag_is_taken_by_upgrade_only(
    fresh_registry: Registry, base_layout: BaseLayout, define: Define, tmp_path: Path
) -> None:
    """A registered definition stays what it was; the new base sends its own layer, the packages' are reused."""
    base = fresh_registry.repository_url("base:1")
    base_layout.push(base)
    team = Team.on(fresh_registry, tmp_path / "versions")
    first = await build(team, define("alpha", base_image=base), tmp_path / "cache")
    moved = push_with_skopeo(await derive(base_layout, tmp_path / "moved", {"etc/patched": b"1"}), base)
    warm = await build(team, define("alpha", base_image=base), tmp_path / "cache")
    assert warm.lock is None and warm.ready.reference == first.ready.reference
    upgraded = await build(team, define("alpha", base_image=base), tmp_path / "cache", upgrade=True)
    assert upgraded.lock is not None and upgraded.lock.base.digest == moved.partition("@")[2]
    assert upgraded.sent_layers == [] and upgraded.ready.version == 2
    assert upgraded.ready.digest != first.ready.digest


async def test_nothing_of_a_base_shows_at_the_place_of_the_environment(
    team: Team, define: Define, base_layout: BaseLayout, docker_engine: DockerEngine, tmp_path: Path
) -> None:
    """A ready image as base, and any other that has something at /opt/env."""
    site = "opt/env/lib/python3.11/site-packages"
    files = {f"{site}/stale.py": b"", f"{site}/stale-1.0.dist-info/METADATA": b"Name: stale\nVersion: 1.0\n"}
    base = await derive(base_layout, tmp_path / "base", files, Env=["PATH=/opt/env/bin:/usr/bin:/bin"])
    built = await build(team, define("beta", base_image=base), tmp_path / "cache")
    docker_engine.pull(built.ready.reference)
    look = "import os, importlib.util as u; print(u.find_spec('stale'), bool(u.find_spec('beta')), os.environ['PATH'])"
    told = docker_engine.run(built.ready.reference, "python", "-c", look)
    assert told.split() == ["None", "True", "/opt/env/bin:/usr/bin:/bin"]


async def test_a_base_whose_python_is_at_the_place_of_the_environment_is_refused(
    team: Team, define: Define, base_layout: BaseLayout, tmp_path: Path
) -> None:
    files = {"opt/env/bin/python3": b"\x7fELF\x003.12.1\x00"}
    base = await derive(base_layout, tmp_path / "base", files, Env=["PATH=/opt/env/bin"])
    with pytest.raises(BaseImageError, match="/opt/env/bin/python3"):
        await build(team, define("beta", base_image=base), tmp_path / "cache")


async def test_a_name_with_a_tag_in_a_layout_is_a_base(team: Team, define: Define, tmp_path: Path) -> None:
    """What this package itself writes into layouts: `<repository>:<tag>`."""
    here = Team.on(tmp_path / "images", tmp_path / "here", default_base_image=None)
    first = await build(here, define("beta"), tmp_path / "cache")
    tag = first.ready.image_hash.removeprefix("sha256:")
    base = f"oci:{tmp_path / 'images'}:environments/demo:{tag}"
    built = await build(team, define("gamma", base_image=base), tmp_path / "cache")
    assert built.lock is not None and built.lock.base.digest == first.ready.digest


@pytest.mark.parametrize("harm", ["lost", "cut"])
async def test_a_layer_that_a_layout_lost_is_built_again(harm: str, define: Define, tmp_path: Path) -> None:
    """A layout whose disk lost a file or its end: the image is not called ready, and the next build mends it."""
    here = Team.on(tmp_path / "images", tmp_path / "here")
    first = await build(here, define("beta"), tmp_path / "cache")
    assert first.image is not None
    layout = Layout(tmp_path / "images")
    manifest, _ = await read_image(layout.repository("environments/demo"), first.ready.digest)
    blob = layout.blob_path(manifest.layers[-1].digest)
    blob.unlink() if harm == "lost" else blob.write_bytes(blob.read_bytes()[:50])
    again = await build(here, define("beta"), tmp_path / "cache")
    assert (again.ready.digest, again.ready.version) == (first.ready.digest, 1)
    assert not again.ready.reused and blob.stat().st_size == manifest.layers[-1].size


async def test_a_bases_own_credentials_count_on_the_workspaces_registry_too(
    define: Define, basic_registry: Registry, base_layout: BaseLayout, tmp_path: Path
) -> None:
    """The workspace may not read the base; the definition names a user who may."""
    at = basic_registry.repository_url("images/own-base:1")
    base_layout.push(at, username=basic_registry.username, password=basic_registry.password)
    values = {"base-user": basic_registry.username, "base-password": "wrong-for-the-base"}
    login = RegistrySettings(basic_registry.address, basic_registry.username, basic_registry.password)
    team = Team(login, FolderVersionStore(tmp_path / "versions", "team"), secrets=Secrets(values))
    with pytest.raises(RegistryAuthError):
        await build(team, define("beta", base_image=at, **NAMED), tmp_path / "cache")
    values["base-password"] = basic_registry.password
    assert (await build(team, define("beta", base_image=at, **NAMED), tmp_path / "cache")).ready.version == 1

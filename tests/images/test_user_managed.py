"""User-managed images: pinned, checked, registered, and copied where that is asked for; nothing is built."""

from dataclasses import replace
from pathlib import Path

import pytest

from prefect_environments.core import steps
from prefect_environments.core.build.catalog import DIFF_ID
from prefect_environments.core.errors import BaseImageError, NotFound
from prefect_environments.core.oci.artifact import TITLE
from prefect_environments.core.oci.descriptor import IMAGE_MANIFEST
from prefect_environments.core.oci.layout import Layout
from prefect_environments.core.site import open_site
from tests.images.conftest import Define
from tests.images.parts import (
    Team,
    build,
    derive,
    downloads,
    push_with_skopeo,
    read_image,
    repository_of,
    requests_of,
    tool,
    uploads,
)
from tests.support.base import BaseLayout
from tests.support.engine import DockerEngine
from tests.support.registry import Registry


async def test_an_image_is_registered_where_it_is_by_digest(
    team: Team, define: Define, open_registry: Registry, base_layout: BaseLayout, tmp_path: Path
) -> None:
    own = open_registry.repository_url("images/as-it-is:1")  # other tests read the base's own repository
    base_layout.push(own)
    wanted = define(base_image=own, user_managed=True, interpreter_path="/usr/bin/python3", find_links=())
    with requests_of(open_registry) as seen:
        first = await build(team, wanted, tmp_path / "cache")
    repository, _, digest = first.ready.reference.partition("@")
    assert repository == own.rpartition(":")[0]
    assert first.ready.digest == digest == tool_digest(own)
    assert first.ready.python_path == "/usr/bin/python3"
    assert first.ready.packages == 0 and first.ready.reused
    assert uploads(seen, repository.partition("/")[2]) == 0
    read = downloads([line for line in seen if "/images/as-it-is/" in line])
    assert len(read) == 1  # the config, for its platform; no layer


async def test_it_is_found_again_by_one_request_and_a_moved_tag_is_taken_in_by_upgrade(
    team: Team, define: Define, open_registry: Registry, base_layout: BaseLayout, dressed: str, tmp_path: Path
) -> None:
    target = open_registry.repository_url("images/moving:1")
    base_layout.push(target)
    wanted = define(base_image=target, user_managed=True, find_links=())
    first = await build(team, wanted, tmp_path / "cache")
    with requests_of(open_registry) as seen:
        again = await build(team, wanted, tmp_path / "cache")
    assert (again.ready.version, again.ready.reference, again.ready.reused) == (1, first.ready.reference, True)
    assert len([line for line in seen if "images/moving" in line or "upgrade" in line]) == 1
    tool("skopeo", "copy", "-q", "--preserve-digests", "--src-tls-verify=false", "--dest-tls-verify=false",
         f"docker://{dressed}", f"docker://{target}")  # fmt: skip
    assert (await build(team, wanted, tmp_path / "cache")).ready.version == 1
    moved = await build(team, wanted, tmp_path / "cache", upgrade=True)
    assert (moved.ready.version, moved.ready.digest) == (2, dressed.rpartition("@")[2])


async def test_a_mirrored_image_is_in_the_workspace_with_its_digest_and_runs(
    team: Team, define: Define, base_layout: BaseLayout, docker_engine: DockerEngine, tmp_path: Path
) -> None:
    wanted = define(user_managed=True, mirror=True, find_links=())
    found = await build(team, wanted, tmp_path / "cache")
    assert found.ready.digest == base_layout.digest
    assert found.ready.reference.startswith(f"{team.registry_settings.address}/{team.repository_prefix}/demo@")
    async with repository_of(found.ready.reference) as (repository, _):
        assert len(await repository.referrers(found.ready.digest)) == 3
    docker_engine.pull(found.ready.reference)
    assert docker_engine.run(found.ready.reference, "python3", "-c", "print(6 * 7)").strip() == "42"


async def test_a_mirror_from_another_registry_is_streamed_and_from_the_same_one_mounted(
    team: Team, define: Define, open_base: str, open_registry: Registry, fresh_registry: Registry, tmp_path: Path
) -> None:
    wanted = define(base_image=open_base, user_managed=True, mirror=True, find_links=())
    same = await build(team, wanted, tmp_path / "cache")
    assert same.image is not None and same.image.bytes_sent == 0
    elsewhere = Team.on(fresh_registry, tmp_path / "elsewhere")
    other = await build(elsewhere, wanted, tmp_path / "cache")
    assert other.image is not None and other.image.bytes_sent > 1_000_000
    assert other.ready.digest == same.ready.digest


async def test_what_does_not_exist_or_is_for_another_platform_is_not_registered(
    team: Team, define: Define, open_base: str, tmp_path: Path
) -> None:
    repository = open_base.rpartition(":")[0]
    with pytest.raises(NotFound, match="does not exist"):
        await build(team, define(base_image=f"{repository}:none", user_managed=True, find_links=()), tmp_path / "c")
    other = define(base_image=open_base, user_managed=True, platform="linux/arm64", find_links=())
    with pytest.raises(BaseImageError, match="linux/amd64, not for linux/arm64"):
        await build(team, other, tmp_path / "c")
    assert await team.versions.names() == []


async def test_an_image_that_went_away_is_not_reported_as_there(
    team: Team, define: Define, fresh_registry: Registry, base_layout: BaseLayout, tmp_path: Path
) -> None:
    target = fresh_registry.repository_url("gone:1")
    reference = push_with_skopeo(base_layout.reference, target)
    wanted = define(base_image=target, user_managed=True, find_links=())
    await build(team, wanted, tmp_path / "cache")
    tool("skopeo", "delete", "--tls-verify=false", f"docker://{reference}")
    async with open_site(team, cache=tmp_path / "cache") as site:
        assert await steps.find_registered(site, wanted) is None


async def test_another_interpreter_is_another_version_of_the_same_image(
    team: Team, define: Define, open_base: str, tmp_path: Path
) -> None:
    """It is what a job starts, and no part of the image: hash and lock are the same, found or resolved."""
    image = {"base_image": open_base, "user_managed": True, "find_links": ()}
    one = await build(team, define(interpreter_path="/usr/bin/python3", **image), tmp_path / "cache")
    two = await build(team, define(interpreter_path="/usr/bin/python3.11", **image), tmp_path / "cache")
    assert (two.ready.version, two.ready.python_path) == (2, "/usr/bin/python3.11")
    three = await build(team, define(interpreter_path="/opt/python", **image), tmp_path / "cache", upgrade=True)
    assert (three.ready.version, three.ready.python_path) == (3, "/opt/python")
    assert one.ready.image_hash == two.ready.image_hash == three.ready.image_hash


async def test_a_copy_is_not_taken_for_an_image_that_stays_where_it_is(
    team: Team, define: Define, open_base: str, tmp_path: Path
) -> None:
    image = {"base_image": open_base, "user_managed": True, "find_links": ()}
    copied = await build(team, define(mirror=True, **image), tmp_path / "cache")
    there = await build(team, define(**image), tmp_path / "cache")
    assert there.ready.digest == copied.ready.digest and there.ready.version == 2
    assert there.ready.reference == f"{open_base.rpartition(':')[0]}@{there.ready.digest}"


async def test_annotations_of_somebody_elses_image_are_no_layers_of_ours(
    team: Team, define: Define, open_base: str, base_layout: BaseLayout, tmp_path: Path
) -> None:
    """An image says that its layer is our layer of `beta`; once it is mirrored, a managed version does not use it."""
    honest = await build(team, define("beta", name="honest", base_image=open_base), tmp_path / "cache")
    async with repository_of(honest.ready.reference) as (repository, digest):
        manifest, _ = await read_image(repository, digest)
    (beta,) = [layer for layer in manifest.layers if layer.annotations.get(TITLE) == "beta 1.0"]
    await derive(base_layout, tmp_path / "forged", {"opt/env/evil": b""})
    layout = Layout(tmp_path / "forged").repository("")
    derived, config = await read_image(layout, "derived")
    notes = {**beta.annotations, DIFF_ID: config.diff_ids[-1]}
    forged = replace(derived, layers=(*derived.layers[:-1], replace(derived.layers[-1], annotations=notes)))
    await layout.put_manifest(forged.to_bytes(), IMAGE_MANIFEST, tag="derived")
    theirs = define(base_image=f"oci:{tmp_path / 'forged'}:derived", user_managed=True, mirror=True, find_links=())
    await build(team, theirs, tmp_path / "cache")
    found = await build(team, define("beta", base_image=open_base), tmp_path / "cache")
    assert found.ready.digest == honest.ready.digest


def tool_digest(reference: str) -> str:
    return tool("skopeo", "inspect", "--tls-verify=false", "--format", "{{.Digest}}", f"docker://{reference}").strip()

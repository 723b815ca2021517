"""Only the change is paid, and what exists is not built: proven by counting a registry's requests and bytes."""

import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from prefect_environments.core.concurrency import gather
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.distribution.registry import Registry as Client
from prefect_environments.core.errors import RegistryUnreachable
from prefect_environments.core.oci.image import ImageManifest
from prefect_environments.core.oci.validate import validate
from prefect_environments.core.registry_settings import RegistrySettings
from prefect_environments.core.versions import FolderVersionStore
from tests.images.conftest import Define
from tests.images.parts import Team, build, conforms, downloads, mounts, repository_of, requests_of, uploads
from tests.support.base import BaseLayout
from tests.support.registry import Registry
from tests.support.wheels import make_wheel, serve_index

DEMO, OTHER = "environments/demo", "environments/other"


@pytest.fixture
def own(fresh_registry: Registry, base_layout: BaseLayout, tmp_path: Path) -> Team:
    """A workspace on a registry of this test's own, with the base image in the same registry."""
    base = fresh_registry.repository_url("base:1")
    base_layout.push(base)
    return Team.on(fresh_registry, tmp_path / "versions", default_base_image=base)


async def layers_of(reference: str) -> list[tuple[str, int]]:
    async with repository_of(reference) as (repository, digest):
        manifest = ImageManifest.from_bytes((await repository.get_manifest(digest)).content)
    return [(layer.digest, layer.size) for layer in manifest.layers]


async def test_an_added_package_sends_one_layer_from_a_worker_without_a_cache(
    own: Team, fresh_registry: Registry, define: Define, wheels: Path, tmp_path: Path
) -> None:
    """A new machine adds `gamma`: its layer, a config and three attachments go up, no layer comes down."""
    first = await build(own, define("alpha", "delta", base_image=""), tmp_path / "one-machine")
    with requests_of(fresh_registry) as seen:
        second = await build(own, define("alpha", "delta", "gamma", base_image=""), tmp_path / "another-machine")
    assert second.sent_layers == ["gamma 1.0"]
    old, new = await layers_of(first.ready.reference), await layers_of(second.ready.reference)
    (added,) = set(new) - set(old)
    assert set(old) < set(new)
    assert uploads(seen, DEMO) == 5  # the layer, the config, the definition, the lock, the SBOM
    assert [line for line in seen if line.startswith("PUT ") and "/blobs/" in line and DEMO not in line] == []
    assert not downloads(seen) & {digest for digest, _ in new}
    assert mounts(seen, DEMO) == 0  # nothing is even asked for layer by layer
    manifests = [line for line in seen if line.startswith(f"PUT /v2/{DEMO}/manifests/")]
    # the image, three attachments, and their list (the registry has no referrers API), which is written for several
    assert 4 + 1 <= len(manifests) <= 4 + 3
    assert not [line for line in seen if f"HEAD /v2/{DEMO}/blobs/{old[0][0]}" in line]
    assert second.lock is not None
    (gamma,) = [package.sha256 for package in second.lock.packages if package.name == "gamma"]
    assert [path.name for path in (tmp_path / "another-machine/wheels").iterdir()] == [gamma]
    assert second.image is not None and second.image.bytes_sent < added[1] + 8000  # blobs of the image: layer, config
    assert second.traffic.bytes_sent < added[1] + 40_000  # everything, texts and manifests included
    assert second.traffic.requests == len(seen)  # what is reported is what the registry saw
    await conforms(second.ready.reference, tmp_path / "conforms")


async def test_another_environment_takes_the_layers_by_mounting(
    own: Team, fresh_registry: Registry, define: Define, tmp_path: Path
) -> None:
    """Another name, another machine, the same packages: the registry itself brings them over."""
    await build(own, define("alpha", "delta", base_image=""), tmp_path / "one-machine")
    with requests_of(fresh_registry) as seen:
        other = await build(own, define("alpha", "delta", name="other", base_image=""), tmp_path / "another-machine")
    assert other.lock is not None
    assert other.sent_layers == [f"empty environment for Python {other.lock.target.python}"]
    # the empty environment (some hundred bytes), config, definition, lock, SBOM, and the artifacts' empty config
    assert uploads(seen, OTHER) == 6
    assert mounts(seen, OTHER) == 1 + 4  # the base's layer; alpha, beta, delta, pip
    assert not downloads(seen) & {digest for digest, _ in await layers_of(other.ready.reference)}
    assert list((tmp_path / "another-machine/wheels").glob("*")) == []
    assert other.traffic.bytes_sent < 30_000


async def test_a_registered_definition_needs_three_requests_and_no_index(
    own: Team, fresh_registry: Registry, define: Define, wheels: Path, tmp_path: Path
) -> None:
    """The index is switched off, and the registry is still asked whether the image is there."""
    with serve_index(wheels) as index:
        wanted = define("alpha", base_image="", find_links=(), no_index=False, index_url=index.url)
        first = await build(own, wanted, tmp_path / "cache")
    with requests_of(fresh_registry) as seen:
        warm = await build(own, wanted, tmp_path / "empty-cache")
    assert warm.lock is None and warm.ready.reused
    assert seen == [f"HEAD /v2/{DEMO}/manifests/{first.ready.digest}"]
    assert (warm.ready.reference, warm.ready.version) == (first.ready.reference, 1)
    assert warm.traffic.requests <= 3 and warm.traffic.bytes_sent == 0
    assert not (tmp_path / "empty-cache").exists()


async def test_an_unreachable_registry_is_an_error(own: Team, define: Define, tmp_path: Path) -> None:
    """Not a build, not a "yes", and no version: for what is registered and for what is not."""
    known, new = define("alpha", base_image=""), define("alpha", "gamma", name="new", base_image="")
    await build(own, known, tmp_path / "cache")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    down = Team(RegistrySettings(address), own.versions, default_base_image=own.default_base_image)
    for definition in (known, new):
        with pytest.raises(RegistryUnreachable, match=address):
            await build(down, definition, tmp_path / "down")
    assert [len(await own.versions.versions(name)) for name in ("demo", "new")] == [1, 0]


async def test_a_deleted_image_is_noticed_and_built_again(own: Team, define: Define, tmp_path: Path) -> None:
    """It is the same image to the byte, so it is the same version."""
    wanted = define("alpha", base_image="")
    first = await build(own, wanted, tmp_path / "cache")
    async with Client(own.registry_settings.address) as client:
        repository = client.repository(DEMO)
        assert await repository.delete_manifest(first.ready.digest)
        again = await build(own, wanted, tmp_path / "new-cache")
        assert again.image is not None and not again.image.reused
        assert (again.ready.digest, again.ready.version) == (first.ready.digest, 1)
        assert await repository.find_manifest(first.ready.digest) is not None
        assert {x.artifact_type for x in await repository.referrers(first.ready.digest)} != set()


async def test_variables_make_a_version_and_send_nothing(
    own: Team, fresh_registry: Registry, define: Define, tmp_path: Path
) -> None:
    """Same definition, same version; another variable, next version of the same image, by one question."""
    first = await build(own, define("alpha", base_image=""), tmp_path / "cache")
    changed = define("alpha", base_image="", environment_variables={"OMP_NUM_THREADS": "4"})
    with requests_of(fresh_registry) as seen:
        second = await build(own, changed, tmp_path / "cache")
        same = await build(own, changed, tmp_path / "cache")
    assert seen == [f"HEAD /v2/{DEMO}/manifests/{first.ready.digest}"] * 2
    assert (second.ready.version, same.ready.version) == (2, 2)
    assert {second.ready.reference, same.ready.reference} == {first.ready.reference}
    record = await own.versions.get("demo", 2)
    assert record.environment_variables == {"OMP_NUM_THREADS": "4"}


async def test_a_registry_that_moved_gets_the_next_version_with_its_own_reference(
    own: Team, define: Define, base_layout: BaseLayout, tmp_path: Path
) -> None:
    """A version says where its image is, so an equal image elsewhere is another version."""
    first = await build(own, define("alpha"), tmp_path / "cache")
    moved = Team.on(tmp_path / "moved", tmp_path / "versions", default_base_image=base_layout.reference)
    moved = replace(moved, versions=own.versions)
    second = await build(moved, define("alpha"), tmp_path / "cache")
    third = await build(moved, define("alpha"), tmp_path / "cache")
    assert second.ready.digest == first.ready.digest
    assert (second.ready.version, third.ready.version) == (2, 2)
    assert third.ready.reference.startswith(f"oci:{tmp_path / 'moved'}:")


async def test_two_names_of_one_registry_make_two_versions_and_not_more(
    own: Team, define: Define, tmp_path: Path
) -> None:
    """Workers inside and outside of a cluster know one registry by two names; they must not take turns for ever."""
    address = own.registry_settings.address.replace("127.0.0.1", "localhost")
    other = replace(own, registry_settings=RegistrySettings(address))
    wanted = define("beta")
    found = [await build(team, wanted, tmp_path / "cache") for team in (own, other, own, other, own)]
    assert [one.ready.version for one in found] == [1, 2, 1, 2, 1]
    assert found[1].ready.reference.startswith("localhost:") and not found[2].ready.reference.startswith("localhost:")


async def test_a_reverted_definition_is_the_next_version_of_the_first_image(
    own: Team, define: Define, tmp_path: Path
) -> None:
    wanted: list[EnvironmentDefinition] = [define("alpha", base_image=""), define("alpha", "gamma", base_image="")]
    found = [await build(own, definition, tmp_path / "cache") for definition in (*wanted, wanted[0])]
    assert [one.ready.version for one in found] == [1, 2, 3]
    assert found[2].ready.digest == found[0].ready.digest != found[1].ready.digest
    assert found[2].ready.reused


async def test_a_new_release_of_a_package_moves_nothing_but_by_upgrade(
    own: Team, define: Define, wheels: Path, tmp_path: Path
) -> None:
    """An added package keeps the locked versions of the others; `upgrade` takes the new one, and sends only it."""
    folder = tmp_path / "index"
    folder.mkdir()
    for wheel in wheels.iterdir():
        os.link(wheel, folder / wheel.name)
    links = {"base_image": "", "find_links": (str(folder),)}
    await build(own, define("alpha", **links), tmp_path / "cache")
    make_wheel(folder, "beta", "2.0")
    added = await build(own, define("alpha", "gamma", **links), tmp_path / "cache")
    assert added.sent_layers == ["gamma 1.0"]
    warm = await build(own, define("alpha", "gamma", **links), tmp_path / "cache")
    assert warm.lock is None and warm.ready.version == 2
    upgraded = await build(own, define("alpha", "gamma", **links), tmp_path / "cache", upgrade=True)
    assert upgraded.sent_layers == ["beta 2.0"] and upgraded.ready.version == 3


async def test_two_workspaces_of_one_registry_share_layers_not_versions(
    own: Team, define: Define, tmp_path: Path
) -> None:
    await build(own, define("alpha", base_image=""), tmp_path / "cache")
    other = Team(
        own.registry_settings, FolderVersionStore(tmp_path / "other", "team"), default_base_image=own.default_base_image
    )
    found = await build(other, define("alpha", base_image=""), tmp_path / "other-cache")
    assert found.image is not None and found.image.reused and found.ready.version == 1


async def test_workers_that_build_the_same_at_once_agree(own: Team, define: Define, tmp_path: Path) -> None:
    """Four workers with caches of their own: one image, one version, each attachment listed once."""
    wanted = define("alpha", "gamma", base_image="")
    found = await gather(build(own, wanted, tmp_path / f"cache-{number}") for number in range(4))
    assert {(one.ready.reference, one.ready.version) for one in found} == {(found[0].ready.reference, 1)}
    async with repository_of(found[0].ready.reference) as (repository, digest):
        await validate(repository, digest, tmp_path / "scratch")
        kinds = [item.artifact_type for item in await repository.referrers(digest)]
    assert len(kinds) == len(set(kinds)) == 3

"""What promotion must not get wrong: one workspace given twice, and attachments that a list still names."""

from dataclasses import replace
from pathlib import Path

import pytest

from prefect_environments.core.errors import DefinitionError
from prefect_environments.core.site import open_site
from prefect_environments.core.verify import verify_version
from tests.images.conftest import Define
from tests.images.parts import Team, requests_of
from tests.images.promote_parts import Ground
from tests.support.registry import Registry


@pytest.fixture
def ground(define: Define, tmp_path: Path) -> Ground:
    return Ground.make(define, tmp_path)


async def test_one_workspace_with_two_registries_is_not_promoted_to_itself(
    ground: Ground, fresh_registry: Registry
) -> None:
    """Its newest version would be where its own registry is not; by another name, too. One of the same name with
    versions of its own, as of another Prefect server, is another workspace."""
    await ground.build("alpha")
    other = Team.on(fresh_registry, ground.folder).registry_settings
    twin = Team(other, ground.dev.versions, name="dev", repository_prefix="prod")
    beside = replace(ground.dev, repository_prefix="beside")
    with requests_of(fresh_registry) as seen:
        for target, name in ((twin, ""), (twin, "served"), (beside, "served")):
            with pytest.raises(DefinitionError, match="are one workspace, 'dev'"):
                await ground.promote(target, target_name=name)
    assert seen == []
    assert [record.version for record in await ground.dev.versions.versions("demo")] == [1]
    done = await ground.promote(ground.workspace(fresh_registry, "dev"))
    assert done.is_new and done.record.workspace == "dev"


async def test_an_attachment_that_the_list_names_and_that_is_gone_is_copied_again(
    ground: Ground, fresh_registry: Registry
) -> None:
    """Where the list of attachments is a tag, it outlives what it names: without its lock, a version is not whole."""
    prod = ground.workspace(fresh_registry, "prod")
    await ground.build("alpha")
    done = await ground.promote(prod)
    async with open_site(prod, cache=ground.folder / "verify") as site:
        repository = site.repository("demo")
        await repository.delete_manifest(done.record.lock_digest)
        assert done.record.lock_digest in {one.digest for one in await repository.referrers(done.record.digest)}
        again = await ground.promote(prod)
        assert not again.is_new and again.bytes_sent == 0
        (await verify_version(site, "demo")).raise_for_failures()

"""A whole build into a Container Registry: resolved, assembled, pushed, registered, locked, found again."""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import RegistryAuthError, RegistryError
from prefect_environments.core.oci.validate import validate
from prefect_environments.core.versions import FolderVersionStore
from tests.images.conftest import real_pip
from tests.images.parts import Team, build, tool
from tests.support.azure.acr_parts import Acr, put_image, running_acr, with_lock
from tests.support.base import BaseLayout
from tests.support.leaks import find_secret
from tests.support.session import Session, need
from tests.support.wheels import make_wheel


@pytest.fixture
def acr(test_session: Session, tmp_path: Path) -> Iterator[Acr]:
    """A registry of the test's own, to which the application may push."""
    with running_acr(test_session, tmp_path / "acr") as running:
        running.server.grant(running.azure.app, "AcrPush")
        yield running


@pytest.fixture
def definition(base_layout: BaseLayout, tmp_path: Path) -> EnvironmentDefinition:
    make_wheel(tmp_path / "wheels", "beta", "1.0")
    shutil.copy(real_pip(), tmp_path / "wheels")
    return EnvironmentDefinition(
        name="demo",
        base_image=base_layout.reference,
        requirements=("beta",),
        find_links=(str(tmp_path / "wheels"),),
        no_index=True,
    )


async def test_an_environment_is_built_locked_found_again_and_leaves_no_secret(
    acr: Acr, definition: EnvironmentDefinition, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    need("skopeo")
    settings = with_lock(acr.settings())
    team = Team(settings, FolderVersionStore(tmp_path / "versions", "team"))
    done = await build(team, definition, tmp_path / "cache")
    assert (done.ready.version, done.ready.reused) == (1, False)
    assert done.ready.reference.startswith(f"{acr.server.address}/environments/demo@sha256:")
    exchanges = acr.asked("/oauth2/exchange")
    again = await build(team, definition, tmp_path / "other-cache")
    assert again.ready.reused and again.ready.reference == done.ready.reference
    assert acr.asked("/oauth2/exchange") == exchanges + 1
    async with acr.client() as client:
        repository = client.repository("environments/demo")
        await validate(repository, done.ready.digest, tmp_path / "check")
        assert len(await repository.referrers(done.ready.digest)) >= 2  # by ACR's own API: nothing is left as a tag
        assert not [tag for tag in await repository.tags() if tag.startswith("sha256-")]
    kept = acr.server.store.repositories["environments/demo"].manifests[done.ready.digest]
    assert (kept.attributes["writeEnabled"], kept.attributes["deleteEnabled"]) == (False, False)

    login = f"00000000-0000-0000-0000-000000000000:{acr.server.refresh_token(acr.azure.app)}"
    source, copied = f"docker://{done.ready.reference}", f"oci:{tmp_path / 'copied'}:image"
    tool("skopeo", "copy", "-q", "--src-tls-verify=false", "--src-creds", login, source, copied)
    assert not [secret for secret in acr.secrets if secret in caplog.text]
    assert find_secret(acr.azure.app.secret, tmp_path / "cache", tmp_path / "acr") == []
    for secret in acr.secrets:
        assert find_secret(secret, tmp_path / "versions") == []


async def test_a_registered_version_outlasts_those_who_may_delete(
    acr: Acr, definition: EnvironmentDefinition, tmp_path: Path
) -> None:
    team = Team(with_lock(acr.settings()), FolderVersionStore(tmp_path / "versions", "team"))
    done = await build(team, definition, tmp_path / "cache")
    acr.server.grant(acr.azure.app, "Owner")
    async with acr.client() as client:
        with pytest.raises(RegistryError, match="locked"):
            await client.repository("environments/demo").delete_manifest(done.ready.digest)
        await put_image(client.repository("environments/demo"), "something-else")
    assert (await build(team, definition, tmp_path / "cache")).ready.reused


async def test_without_the_right_to_lock_there_is_no_version(
    acr: Acr, definition: EnvironmentDefinition, tmp_path: Path
) -> None:
    acr.server.add_token("ci", "token-pass-word-2", **dict.fromkeys(_PATHS, "pull,push"))
    settings = with_lock(acr.open_to(username="ci", password="token-pass-word-2"))
    team = Team(settings, FolderVersionStore(tmp_path / "versions", "team"))
    with pytest.raises(RegistryAuthError, match="locking of environments/demo"):
        await build(team, definition, tmp_path / "cache")
    assert await team.versions.versions("demo") == []


_PATHS = ("environments/demo", "environments-layers", "environments-wheels")

"""Secret references everywhere: errors name the field and the form, values follow rotation and stand nowhere."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from prefect_environments.core import hashes, references
from prefect_environments.core.azure.store import KeyVaultSecretStore
from prefect_environments.core.build.docker.engine import Engine
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.dockerfiles import built_base
from prefect_environments.core.errors import SecretError
from prefect_environments.core.jobs.engine_image import ensure_image
from prefect_environments.core.redact import MASK, redact
from prefect_environments.core.registry_settings import RegistrySettings
from prefect_environments.core.secrets import resolve
from prefect_environments.core.site import open_repository, open_site
from prefect_environments.core.stores import ImageLocation
from prefect_environments.core.versions import FolderVersionStore, VersionRecord
from tests.images.parts import Secrets, Team
from tests.support.azure.parts import Azure, running_azure
from tests.support.session import Session

IMAGE = f"sha256:{'0' * 64}"
REFERENCE = "@Microsoft.KeyVault(VaultName=team;SecretName=gone)"
NAMED = "@Microsoft.KeyVault(VaultName=team;SecretName=gone): "


@dataclass(frozen=True)
class NoVault:
    """A workspace that is nothing but its store, which knows no vault unless it is given one."""

    secrets: KeyVaultSecretStore = field(default_factory=lambda: KeyVaultSecretStore([]))


def team(tmp_path: Path, **fields: Any) -> Team:
    made = Team(RegistrySettings(f"oci:{tmp_path / 'images'}"), FolderVersionStore(tmp_path / "versions", "team"))
    return replace(made, **fields)


async def failing(work: Any) -> str:
    with pytest.raises(SecretError) as caught:
        await work
    return str(caught.value)


async def test_an_error_begins_with_the_field_and_the_reference() -> None:
    said = await failing(resolve(REFERENCE, KeyVaultSecretStore([]), "base_image_password"))
    assert said.startswith(f"base_image_password: {NAMED}no Key Vault is known here")
    assert said.count("SecretName=gone") == 1
    said = await failing(resolve("@Microsoft.KeyVault(VaultName=planted-text)", KeyVaultSecretStore([]), "the field"))
    assert said.startswith("the field: malformed secret reference") and "planted-text" not in said


async def test_the_registry_names_its_own_password() -> None:
    settings = RegistrySettings("team.example.com", "ann", REFERENCE)
    said = await failing(settings.resolved(KeyVaultSecretStore([])))
    assert said.startswith(f"password of the registry team.example.com: {NAMED}")
    said = await failing(replace(settings, username=REFERENCE).resolved(KeyVaultSecretStore([])))
    assert said.startswith("username of the registry team.example.com: ")


async def test_a_definition_names_its_base_images_password_also_on_the_workspaces_own_registry(tmp_path: Path) -> None:
    definition = EnvironmentDefinition(
        name="demo",
        base_image="registry.example.com/base:1",
        base_image_username="ann",
        base_image_password="secret:gone",
    )
    location = ImageLocation.parse(definition.base_image)
    for own in (f"oci:{tmp_path / 'images'}", "registry.example.com"):
        async with open_site(team(tmp_path, registry_settings=RegistrySettings(own)), cache=tmp_path / "cache") as site:
            said = await failing(open_repository(site, definition, location).__aenter__())
        assert said.startswith("base_image_password: secret:gone: ")


@pytest.mark.parametrize(
    ("image", "registry"),
    [
        ("hub.example.com/base:1", "Hub.example.com"),
        ("hub.example.com:5000/base:1", "hub.example.com:5000"),
        ("python:3.12", "index.docker.io"),
        ("python:3.12", "docker.io"),
    ],
)
async def test_a_registry_gets_its_login_however_it_is_spelt_and_no_other_does(
    image: str, registry: str, tmp_path: Path
) -> None:
    """A login that is not found by its registry's name would leave an anonymous build, which fails for no reason."""
    wanted = EnvironmentDefinition(
        name="demo",
        dockerfile=f"FROM {image}\n",
        base_image_registry=registry,
        base_image_username="ann",
        base_image_password="secret:gone",
    )
    other = ImageLocation.parse("other.example.com/base:1")
    async with open_site(team(tmp_path), cache=tmp_path / "cache") as site:
        assert (await failing(built_base(site, wanted))).startswith("base_image_password: secret:gone: ")
        async with open_repository(site, wanted, other) as repository:  # asks for no secret
            assert repository.name == "other.example.com/base"


async def test_a_job_in_docker_names_its_images_password_before_the_engine_is_asked(tmp_path: Path) -> None:
    definition = EnvironmentDefinition(
        name="demo",
        base_image="hub.example.com/base:1",
        user_managed=True,
        base_image_username="ann",
        base_image_password="secret:gone",
    )
    reference, stored = f"hub.example.com/base@{IMAGE}", definition.model_dump(mode="json")
    record = VersionRecord("team", "demo", 1, reference=reference, definition=stored)
    async with open_site(team(tmp_path), cache=tmp_path / "cache") as site:
        said = await failing(ensure_image(site, record, Engine("unix:///none")))
    assert said.startswith("base_image_password: secret:gone: ")


async def test_a_build_secret_is_named_before_anything_is_built(tmp_path: Path) -> None:
    """No engine is asked: this machine needs none."""
    wanted = EnvironmentDefinition(name="demo", dockerfile="FROM scratch\n", build_secrets={"token": "secret:gone"})
    async with open_site(team(tmp_path), cache=tmp_path / "cache") as site:
        assert (await failing(built_base(site, wanted))).startswith("build_secrets.token: secret:gone: ")
        private = wanted.model_copy(
            update={
                "build_secrets": {},
                "base_image_registry": "registry.example.com",
                "base_image_username": "ann",
                "base_image_password": "secret:gone",
            }
        )
        assert (await failing(built_base(site, private))).startswith("base_image_password: secret:gone: ")


async def test_an_index_names_its_address_and_no_network_is_used(tmp_path: Path) -> None:
    wanted = {"https://p.example.com/simple": ("ann", "secret:gone")}
    said = await failing(open_site(team(tmp_path, index_credentials=wanted), cache=tmp_path / "cache").__aenter__())
    assert said.startswith("password of the package index https://p.example.com/simple: secret:gone: ")


async def test_variables_are_resolved_where_they_nest_and_all_failures_are_told_at_once(tmp_path: Path) -> None:
    workspace = team(tmp_path, secrets=Secrets({"token": "value-of-token", "more": "value-of-more"}))
    given = {"image": "r@sha256:1", "env": {"TOKEN": "secret:token", "N": 3, "L": ["secret:more", None]}}
    found = await references.resolve_variables(workspace.secrets, given, "job_variables")
    assert found == {"image": "r@sha256:1", "env": {"TOKEN": "value-of-token", "N": 3, "L": ["value-of-more", None]}}
    assert type(found["env"]["TOKEN"]) is str  # a worker's process gets it as JSON
    assert redact("with value-of-token") == f"with {MASK}"
    assert given["env"] == {"TOKEN": "secret:token", "N": 3, "L": ["secret:more", None]}
    wrong: Mapping[str, Any] = {"A": "secret:token", "B": REFERENCE, "env": {"C": "secret:no-such"}}
    said = await failing(references.resolve_variables(NoVault().secrets, wrong, "job_variables"))
    assert [line.partition(": ")[0] for line in said.splitlines()] == [
        f"job_variables.{x}" for x in ("A", "B", "env.C")
    ]
    assert f"job_variables.B: {NAMED}" in said
    assert await references.resolve_variables(NoVault().secrets, {"A": "plain"}) == {"A": "plain"}


async def test_a_reference_without_a_version_gives_the_new_value_and_one_with_a_version_the_old(
    test_session: Session,
) -> None:
    """Rotation; hashes and what is stored know the reference only."""
    with running_azure(test_session) as azure:
        first = azure.vault.put("api", "value-number-one")
        newest = f"@Microsoft.KeyVault(SecretUri={azure.vault.vault_url}/secrets/api)"
        pinned = f"@Microsoft.KeyVault(SecretUri={azure.vault.vault_url}/secrets/api/{first})"
        wanted = {"TOKEN": newest, "PINNED": pinned}
        definition = EnvironmentDefinition(name="demo", base_image="b:1", environment_variables=wanted)
        record = hashes.record_hash(IMAGE, definition)
        values = [await _values(azure, wanted)]
        azure.vault.put("api", "value-number-two")
        values.append(await _values(azure, wanted))
    assert [found["TOKEN"] for found in values] == ["value-number-one", "value-number-two"]
    assert [found["PINNED"] for found in values] == ["value-number-one"] * 2
    assert hashes.record_hash(IMAGE, definition) == record
    assert "value-number" not in json.dumps(definition.model_dump(mode="json"))
    assert definition.environment_variables == wanted


async def _values(azure: Azure, wanted: dict[str, str]) -> dict[str, Any]:
    """By a store that keeps nothing, as that of another process."""
    return await references.resolve_variables(KeyVaultSecretStore([azure.settings(cache_seconds=0)]), wanted)


async def test_a_vault_that_refuses_is_told_with_field_form_and_role(test_session: Session) -> None:
    with running_azure(test_session) as azure:
        azure.vault.put("api", "hidden-value-1")
        azure.vault.grant(azure.app, "Key Vault Reader")
        text = f"@Microsoft.KeyVault(SecretUri={azure.vault.vault_url}/secrets/api)"
        workspace = NoVault(KeyVaultSecretStore([azure.settings()]))
        said = await failing(references.resolve_variables(workspace.secrets, {"TOKEN": text}))
    assert said.startswith(f"environment_variables.TOKEN: {text}: ")
    assert "Key Vault Secrets User" in said and "hidden-value-1" not in said

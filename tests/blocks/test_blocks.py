"""Blocks against Prefect's own rules, and that saving and showing them never spills a secret."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, get_args
from uuid import uuid4

import pytest
from cryptography.fernet import Fernet
from fastapi.encoders import jsonable_encoder
from prefect import flow
from prefect.blocks.core import Block
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run
from prefect.testing.standard_test_suites.blocks import BlockStandardTestSuite
from pydantic import SecretStr

from prefect_environments.blocks import (
    ContainerRegistry,
    EnvironmentHistory,
    EnvironmentVersion,
    PackageIndexCredentials,
    Workspace,
    base,
)
from prefect_environments.blocks.secrets import PrefectSecretStore
from prefect_environments.blocks.versions import PrefectVersionStore
from prefect_environments.core.errors import DefinitionError, NameNotAllowed, SecretError, VersionError
from prefect_environments.core.secrets import SecretReference
from prefect_environments.core.versions import FolderVersionStore, VersionRecord
from tests.support.leaks import find_secret
from tests.support.session import Session

BLOCKS = [ContainerRegistry, EnvironmentHistory, EnvironmentVersion, PackageIndexCredentials, Workspace]


@pytest.mark.parametrize("block", BLOCKS)
class TestStandard(BlockStandardTestSuite):
    """Prefect's checks of descriptions, examples and addresses."""

    @pytest.fixture
    def block(self, request: pytest.FixtureRequest) -> Any:
        return request.param


@pytest.mark.parametrize("block", BLOCKS)
def test_no_field_is_a_list_of_blocks_or_a_union_of_ones_that_can_be_mistaken_for_each_other(
    block: type[Block],
) -> None:
    """A stored union is read back by its shape: each member needs a required field that no other has."""
    for name, reference in block.model_json_schema()["block_schema_references"].items():
        members = [kind for kind in get_args(block.model_fields[name].annotation) if kind is not type(None)]
        for one in members if isinstance(reference, list) else []:
            own = {field for field, info in one.model_fields.items() if info.is_required()}
            others = {field for kind in members if kind is not one for field in kind.model_fields}
            assert own - others, f"{name} is rebuilt by shape, and {one.__name__} has none of its own"
        annotation = block.model_fields[name].annotation
        assert "list" not in str(annotation), f"{name} would be stored as a copy, secrets included"


def unique(prefix: str) -> str:
    return f"{prefix}-{uuid4().hex[:12]}"


def registry(password: str = "pull-password-1") -> ContainerRegistry:
    return ContainerRegistry(address="registry.example.com", username="bob", password=SecretStr(password))


async def test_a_workspace_with_an_unsaved_registry_is_not_saved_if_that_holds_a_secret(prefect_server: str) -> None:
    name = unique("ws")
    with pytest.raises(SecretError, match=r'save it first, as in registry\.save\("my-container-registry"\)') as caught:
        await Workspace(name="team", registry=registry()).asave(name)
    assert "pull-password-1" not in str(caught.value)
    with pytest.raises(ValueError, match="Unable to find"):
        await Workspace.aload(name)


def test_the_synchronous_way_of_saving_refuses_as_well(prefect_server: str) -> None:
    index = PackageIndexCredentials(url="https://p.example.com/simple", username="u", password=SecretStr("index-pass"))
    open_registry = ContainerRegistry(address="registry.example.com")
    with pytest.raises(SecretError, match="index of this Environments Workspace holds a secret"):
        Workspace(name="team", registry=open_registry, index=index).save(unique("ws"))


async def test_a_saved_workspace_refers_to_its_registry_and_follows_a_new_password(prefect_server: str) -> None:
    name, own = unique("ws"), registry("old-password-1")
    await own.asave(unique("registry"))
    await Workspace(name="team", registry=own).asave(name)
    own.password = SecretStr("new-password-2")
    await own.asave(own._block_document_name, overwrite=True)

    loaded: Workspace = await Workspace.aload(name)
    assert loaded.registry.settings().password == "new-password-2"
    assert loaded.registry._block_document_id == own._block_document_id
    async with get_client() as client:
        document = await client.read_block_document_by_name(name, "environments-workspace", include_secrets=False)
    assert document.block_document_references["registry"]["block_document"]["id"] == str(own._block_document_id)
    assert "new-password-2" not in json.dumps(document.data)


async def test_the_servers_database_has_the_password_in_the_registrys_document_only(
    prefect_server: str, test_session: Session
) -> None:
    name, password = unique("ws"), unique("pass-word")
    own = registry(password)
    with pytest.raises(SecretError):
        await Workspace(name="team", registry=own).asave(name)
    own_name = unique("registry")
    await own.asave(own_name)
    await Workspace(name="team", registry=own).asave(name)

    folder = test_session.folder / "prefect-server"
    assert find_secret(password, folder) == []  # neither in the database's bytes nor in a log
    with closing(sqlite3.connect(folder / "prefect.db")) as database:
        (key,) = database.execute("SELECT value FROM configuration WHERE key = 'ENCRYPTION_KEY'").fetchone()
        rows = database.execute("SELECT name, data FROM block_document").fetchall()
    fernet = Fernet(json.loads(key)["fernet_key"])
    plain = {document: fernet.decrypt(json.loads(data)).decode() for document, data in rows}
    assert "repository_prefix" in plain[name]
    assert [document for document, data in plain.items() if password in data] == [own_name]


async def test_a_loaded_workspace_saves_again_without_a_copy_of_its_registry(prefect_server: str) -> None:
    name, own = unique("ws"), registry()
    await own.asave(unique("registry"))
    await Workspace(name="team", registry=own).asave(name)
    loaded: Workspace = await Workspace.aload(name)
    loaded.allow_source_builds = True
    await loaded.asave(name, overwrite=True)
    own.password = SecretStr("another-password")
    await own.asave(own._block_document_name, overwrite=True)
    again: Workspace = await Workspace.aload(name)
    assert again.allow_source_builds
    assert again.registry.settings().password == "another-password"


async def test_a_local_workspace_is_saved_with_its_folder_inside(prefect_server: str, tmp_path: Path) -> None:
    name = unique("ws")
    await Workspace.local(tmp_path).asave(name)
    loaded: Workspace = await Workspace.aload(name)
    assert loaded.registry.settings().folder == tmp_path / "images"


async def test_schemas_are_made_once_however_often_prefect_asks_for_them(
    prefect_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To save a workspace it asks for its fields' schemas dozens of times, each time with all blocks inside them."""
    made = list[str]()
    original = Block.model_json_schema.__func__  # type: ignore[attr-defined]

    def make(cls: type[Block], *given: Any, **named: Any) -> Any:
        made.append(cls.__name__)
        return original(cls, *given, **named)

    monkeypatch.setattr(Block, "model_json_schema", classmethod(make))
    monkeypatch.setattr(base, "_schemas", {})
    registry = ContainerRegistry(address="registry.example.com")
    await registry.asave(unique("registry"))
    await Workspace(name=unique("Team"), registry=registry).asave(name := unique("ws"))
    assert made.count("Workspace") == 2  # with fields by alias, and by name
    made.clear()
    loaded: Workspace = await Workspace.aload(name)
    await loaded.asave(name, overwrite=True)
    assert not made
    schema = Workspace.model_json_schema()
    schema["properties"].clear()  # a copy: who changes it changes nobody else's
    assert Workspace.model_json_schema()["properties"]


async def test_every_field_survives_saving_and_loading(prefect_server: str) -> None:
    index = PackageIndexCredentials(
        url="https://p.example.com/simple", username="u", password=SecretStr("secret:index")
    )
    own = ContainerRegistry(
        address="registry.example.com:5000",
        username="bob",
        password=SecretStr("@Microsoft.KeyVault(VaultName=team;SecretName=pull)"),
        plain_http=True,
        ca_file="ca.pem",
    )
    await index.asave(unique("index"))
    await own.asave(unique("registry"))
    workspace = Workspace(
        name="Team.A",
        registry=own,
        repository_prefix="team/envs",
        default_base_image="python:3.12-slim",
        allow_source_builds=True,
        index=index,
    )
    name = unique("ws")
    await workspace.asave(name)
    loaded: Workspace = await Workspace.aload(name)
    assert type(loaded.registry) is ContainerRegistry
    secret = {"include_secrets": True}
    fields = set(Workspace.model_fields) - {"registry", "index"}
    assert loaded.model_dump(include=fields, context=secret) == workspace.model_dump(include=fields, context=secret)
    assert loaded.registry.settings() == own.settings()
    assert loaded.index is not None
    assert loaded.index.password == index.password


def test_json_of_an_unsaved_workspace_masks_its_secrets() -> None:
    shown = jsonable_encoder(Workspace(name="team", registry=registry()))
    assert "pull-password-1" not in json.dumps(shown)
    assert shown["registry"]["address"] == "registry.example.com"


async def test_a_flow_run_stores_where_a_saved_workspace_is_and_runs_again_from_that(prefect_server: str) -> None:
    own = registry()
    await own.asave(unique("registry"))
    workspace = Workspace(name="team", registry=own)
    await workspace.asave(unique("ws"))

    @flow(persist_result=False)
    async def sign_in(workspace: Workspace) -> tuple[str, str | None]:
        return str(flow_run.id), workspace.registry.settings().password

    run_id, password = await sign_in(workspace)
    assert password == "pull-password-1"
    async with get_client() as client:
        stored = (await client.read_flow_run(run_id)).parameters  # type: ignore[arg-type]
    assert stored == {"workspace": {"$ref": {"block_document_id": str(workspace._block_document_id)}}}
    _, password = await sign_in(stored["workspace"])
    assert password == "pull-password-1"


async def test_a_flow_run_with_an_unsaved_workspace_stores_no_secret(prefect_server: str) -> None:
    @flow(persist_result=False)
    async def only_run(workspace: Workspace) -> str:
        return str(flow_run.id)

    run_id = await only_run(Workspace(name="team", registry=registry()))
    async with get_client() as client:
        stored = (await client.read_flow_run(run_id)).parameters  # type: ignore[arg-type]
    assert "pull-password-1" not in json.dumps(stored)
    assert stored["workspace"]["registry"]["username"] == "bob"


@pytest.mark.parametrize(
    ("fields", "advice"),
    [
        ({"address": "https://registry.example.com"}, "no scheme"),
        ({"address": "registry.example.com/x"}, "no path"),
        ({"address": "bob:hunter2@registry.example.com"}, "no credentials"),
        ({"address": "registry.example.com", "username": "bob"}, "both username and password"),
        ({"address": "registry.example.com", "password": "hunter2"}, "both username and password"),
        ({"address": "oci:/x", "username": "bob", "password": "hunter2"}, "takes no username"),
    ],
)
def test_a_wrong_registry_is_refused_with_advice_and_without_its_secret(fields: dict[str, str], advice: str) -> None:
    with pytest.raises(DefinitionError, match=advice) as caught:
        ContainerRegistry.model_validate(fields)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("url", ["packages.example.com", "ftp://p.example.com", "https://u:hunter2@p.example.com/"])
def test_a_wrong_index_url_is_refused_without_its_secret(url: str) -> None:
    with pytest.raises(DefinitionError, match="index's url") as caught:
        PackageIndexCredentials(url=url)
    assert "hunter2" not in str(caught.value)


def test_a_workspace_checks_its_name_and_prefix_and_names_repositories() -> None:
    own = ContainerRegistry(address="registry.example.com")
    assert Workspace(name="T", registry=own).repository_path("My.Env") == "environments/my-env"
    with pytest.raises(NameNotAllowed):
        Workspace(name="T", registry=own).repository_path("a/b")
    for wrong in ({"name": "a b"}, {"repository_prefix": "Team/x"}, {"repository_prefix": "/x"}):
        with pytest.raises(DefinitionError):
            Workspace.model_validate({"name": "T", "registry": own, **wrong})


def test_a_workspace_keeps_versions_in_its_folder_or_on_the_api(tmp_path: Path) -> None:
    local = Workspace.local(tmp_path)
    assert isinstance(local.versions, FolderVersionStore)
    assert local.registry.settings().folder == tmp_path / "images"
    remote = Workspace(name="T", registry=ContainerRegistry(address="registry.example.com"))
    assert isinstance(remote.versions, PrefectVersionStore)
    assert remote.versions.workspace == "T"


async def test_a_registry_resolves_its_password_from_a_secret_block(prefect_server: str) -> None:
    name = unique("pull")
    await Secret(value=SecretStr("0123e4")).asave(name)
    own = ContainerRegistry(address="registry.example.com", username="bob", password=SecretStr(f"secret:{name}"))
    store = Workspace(name="team", registry=own).secrets
    assert (await own.resolved_settings(store)).password == "0123e4"
    index = PackageIndexCredentials(url="https://p.example.com/", username="u", password=SecretStr(f"secret:{name}"))
    assert await index.credentials(store) == ("u", "0123e4")
    assert await PackageIndexCredentials(url="https://p.example.com/").credentials(store) is None


async def test_secrets_that_cannot_be_read_are_named(prefect_server: str) -> None:
    store, numbers = PrefectSecretStore(), unique("numbers")
    await Secret.model_validate({"value": {"a": 1}}).asave(numbers)
    for text, says in (
        ("secret:no-such-block", "no Secret block named 'no-such-block'"),
        (f"secret:{numbers}", "holds dict, not a text"),
        ("@Microsoft.KeyVault(VaultName=team;SecretName=x)", "VaultName=team.*no Key Vault is known here"),
    ):
        with pytest.raises(SecretError, match=says):
            await store.get(SecretReference.parse(text))


def test_a_version_block_gives_its_record_back_unless_it_was_altered() -> None:
    record = VersionRecord("team", "train", 1, "r", definition={"a": 1})
    block = EnvironmentVersion.from_record(record)
    assert block.to_record() == record
    block.record["reference"] = "other"
    with pytest.raises(VersionError, match="was altered"):
        block.to_record()


def test_a_default_base_image_with_a_password_is_refused_and_not_shown() -> None:
    registry = ContainerRegistry(address="registry.example.com")
    with pytest.raises(DefinitionError) as caught:
        Workspace(name="team", registry=registry, default_base_image="bob:hunter2@registry.example.com/python:3")
    assert "default_base_image" in str(caught.value) and "hunter2" not in str(caught.value)


def test_a_token_as_user_name_needs_no_password() -> None:
    index = PackageIndexCredentials(url="https://packages.example.com/simple", username="token")
    workspace = Workspace(name="team", registry=ContainerRegistry(address="registry.example.com"), index=index)
    assert workspace.index_credentials == {"https://packages.example.com/simple": ("token", "")}

"""The check as a flow, and a whole build whose every secret is in a Key Vault."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest
from prefect import flow
from pydantic import SecretStr

from prefect_environments import EnvironmentDefinition, Keyvault, Workspace
from prefect_environments.blocks import AzureCredentials, ContainerRegistry, PackageIndexCredentials
from prefect_environments.core.azure.keyvault import open_vault
from prefect_environments.core.errors import RegistryAuthError
from prefect_environments.core.findings import Finding
from prefect_environments.flows import build_environment, check_workspace
from prefect_environments.tasks import check_workspace as check_task
from tests.flows.parts import Run, unique, wheel_folder
from tests.flows.test_leaks import documents, rows, small_files
from tests.support.azure.parts import Azure, running_azure
from tests.support.base import BaseLayout
from tests.support.leaks import find_secret
from tests.support.registry import Registry, start_registry
from tests.support.session import Session, end
from tests.support.wheels import serve_index

PLACES = ("registry", "base", "index", "variable")


@dataclass
class Team:
    """A saved workspace whose passwords are in a vault, and the values that are planted there."""

    azure: Azure
    registry: Registry
    base_image: str
    workspace: Workspace
    secrets: dict[str, str]

    def reference(self, name: str) -> str:
        return f"@Microsoft.KeyVault(SecretUri={self.azure.vault.vault_url}/secrets/{name})"

    def definition(self) -> EnvironmentDefinition:
        return EnvironmentDefinition(
            name=unique("env"),
            base_image=self.base_image,
            base_image_username="ann",
            base_image_password=self.reference("base"),
            requirements=("spam",),
            environment_variables={"API_TOKEN": self.reference("variable")},
        )


@pytest.fixture
def team(test_session: Session, base_layout: BaseLayout, tmp_path: Path) -> Iterator[Team]:
    secrets = {name: f"planted-{name}-{token_hex(8)}" for name in PLACES}
    with ExitStack() as stack:
        azure = stack.enter_context(running_azure(test_session))
        for name, value in secrets.items():
            azure.vault.put(name, value)
        registry, base = (
            start_registry(test_session, unique(name), username="ann", password=secrets[name])
            for name in ("registry", "base")
        )
        stack.callback(end, registry.pid)
        stack.callback(end, base.pid)
        base_layout.push(base.repository_url("base:1"), username="ann", password=secrets["base"])
        wheels = wheel_folder(tmp_path / "wheels")
        index = stack.enter_context(serve_index(wheels, auth=("bob", secrets["index"])))
        found = Team(azure, registry, base.repository_url("base:1"), Workspace.local(tmp_path), secrets)
        found.workspace = saved(found, index.url)
        yield found


def saved(team: Team, index: str) -> Workspace:
    """As a user does it: credentials, vault, registry and index in blocks of their own, then the workspace."""
    who = AzureCredentials(**team.azure.fields)
    who.save(unique("azure"))
    keyvault = Keyvault(vault=team.azure.vault.vault_url, credentials=who, cache_seconds=0)
    keyvault.save(unique("vault"))
    registry = ContainerRegistry(
        address=team.registry.address, username="ann", password=SecretStr(team.reference("registry"))
    )
    registry.save(unique("registry"))
    packages = PackageIndexCredentials(url=index, username="bob", password=SecretStr(team.reference("index")))
    packages.save(unique("index"))
    workspace = Workspace(name=unique("Team"), registry=registry, index=packages, keyvault=keyvault)
    name = unique("workspace")
    workspace.save(name)
    return Workspace.load(name)  # type: ignore[return-value]


def rotate(team: Team, test_session: Session) -> None:
    """A new password in the registry, and then in the vault."""
    password = f"planted-rotated-{token_hex(8)}"
    users = test_session.folder / f"{team.registry.folder.name}.htpasswd"
    line = ["htpasswd", "-B", "-C", "5", "-b", "-n", "ann", password]
    users.write_bytes(subprocess.run(line, check=True, capture_output=True).stdout)
    with pytest.raises(RegistryAuthError):
        build_environment(team.definition(), team.workspace)
    team.secrets["rotated"] = password
    team.azure.vault.put("registry", password)


def test_a_build_with_all_secrets_in_a_vault_follows_rotation_and_leaves_no_value_anywhere(
    team: Team, test_session: Session, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Server, blocks, runs, logs, artifacts, registry, caches: the references stand there, the values nowhere."""
    request.getfixturevalue("run_logs")
    capture = request.getfixturevalue("capfd")
    definition = team.definition()
    state = build_environment(definition, team.workspace, return_state=True)
    assert not state.result().reused
    checked = check_workspace(team.workspace, return_state=True)
    assert checked.is_completed(), checked.message
    rotate(team, test_session)
    assert build_environment(definition, team.workspace).reused
    Run(state.state_details.flow_run_id).messages("Finished in state")
    shown = capture.readouterr()
    left = tmp_path / "left"
    left.mkdir()
    (left / "told").write_text("\n".join([shown.out, shown.err, request.getfixturevalue("caplog").text]))
    text = rows(test_session, left / "rows.sql").read_text()
    plain = documents(test_session)
    assert team.reference("variable") in "".join(plain.values()), "a version has the reference"
    assert team.reference("base") in text + "".join(plain.values())
    images = small_files(team.registry.folder)
    assert len(images) > 10
    folders = [test_session.folder / name for name in ("prefect-server", "logs", "cache")]
    for name, secret in team.secrets.items():
        assert find_secret(secret, left, *folders, *images) == [], name
        assert [document for document, data in plain.items() if secret in data] == [], name
    assert open_vault(team.workspace.vaults[0]).get("registry") == team.secrets["rotated"]


def table(run: Run) -> list[dict[str, Any]]:
    (artifact,) = run.artifacts("table")
    found: list[dict[str, Any]] = json.loads(str(artifact.data))
    return found


def test_the_flow_fails_with_what_is_to_fix_and_shows_a_table(
    remote: Workspace, run_logs: None, tmp_path: Path
) -> None:
    broken = remote.model_copy(update={"index": PackageIndexCredentials(url="http://127.0.0.1:9/simple")})
    state = check_workspace(broken, return_state=True)
    assert state.is_failed()
    assert "package index" in str(state.message) and "1 of" in str(state.message)
    run = Run(state.state_details.flow_run_id)
    assert run.run.name.startswith("check-")
    rows = {row["check"]: row for row in table(run)}
    assert {"registry", "pull", "push", "versions", "package index"} <= set(rows)
    assert rows["push"]["state"] == "ok" and rows["push"]["what to do"] == ""
    assert rows["package index"]["state"] == "failed"
    assert "PackageIndexCredentials" in rows["package index"]["what to do"]
    assert "Finished in state Failed" in run.messages("Finished in state")


def test_the_flow_of_a_folder_completes_and_the_task_fits_other_flows(local: Workspace) -> None:
    """What only some builds need, such as a Docker engine, is shown as missing and fails nothing."""

    @flow(persist_result=False)
    def own() -> list[Finding]:
        return check_task(local)

    found = {one.name: one for one in own()}
    assert found["registry"].ok
    assert not found["Docker engine"].required
    assert check_workspace(local, return_state=True).is_completed()


def test_the_form_asks_for_a_saved_workspace_first() -> None:
    schema: dict[str, Any] = check_workspace.parameters.model_dump()
    assert list(schema["properties"]) == ["workspace", "deleting"]
    assert schema["properties"]["workspace"]["description"] == "The workspace to look at."

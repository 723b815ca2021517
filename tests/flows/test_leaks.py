"""Planted secrets are nowhere: not on the server, in logs, images, folders or errors; only in their own blocks."""

import json
import sqlite3
import tempfile
import traceback
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex

import pytest
from cryptography.fernet import Fernet
from prefect.blocks.system import Secret
from pydantic import SecretStr

from prefect_environments import ContainerRegistry, EnvironmentDefinition, Workspace
from prefect_environments.blocks import PackageIndexCredentials
from prefect_environments.core.errors import PrefectEnvironmentsError
from prefect_environments.flows import build_environment
from tests.flows.parts import Run, run_by_worker, unique, wheel_folder
from tests.support.base import BaseLayout
from tests.support.leaks import find_secret, smaller_files
from tests.support.registry import Registry, start_registry
from tests.support.session import Session, end
from tests.support.wheels import Index, serve_index

_BASE_LAYER = 5_000_000  # bytes; the base image's own layer is bigger, and not searched for the sake of time


@dataclass
class Planted:
    """A workspace whose every part wants a secret, and the secrets."""

    registry: Registry
    base: Registry
    index: Index
    base_image: str
    secrets: dict[str, str]
    owners: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """The names of the block documents that may hold a secret, by secret."""

    def workspace(self, *, saved: bool, wrong: str = "") -> Workspace:
        """Unsaved with the values in it; or saved, each secret in a block of its own. `wrong` ones are refused."""
        registry = ContainerRegistry(
            address=self.registry.address,
            username="ann",
            password=SecretStr(self.secrets["wrong" if wrong == "registry" else "registry"]),
        )
        password = self.secrets["wrong" if wrong == "index" else "index"]
        if saved and not wrong:
            password = self.keep("index")
        index = PackageIndexCredentials(url=self.index.url, username="bob", password=SecretStr(password))
        workspace = Workspace(name=unique("Leaks"), registry=registry, index=index)
        if saved:
            for block in (registry, index):
                name = unique(block.get_block_type_slug())
                block.save(name)
                self.owners[block.password.get_secret_value()].add(name)  # type: ignore[union-attr]
            workspace.save(unique("workspace"))
        return workspace

    def keep(self, what: str) -> str:
        """A reference to the secret, which is put into a Secret block."""
        name = unique("secret")
        Secret(value=SecretStr(self.secrets[what])).save(name)
        self.owners[self.secrets[what]].add(name)
        return f"secret:{name}"


@pytest.fixture
def planted(test_session: Session, base_layout: BaseLayout, tmp_path: Path) -> Iterator[Planted]:
    what = ("registry", "index", "base", "variable", "wrong")
    secrets = {name: f"planted-{name}-{token_hex(8)}" for name in what}
    registry, base = (
        start_registry(test_session, unique(name), username="ann", password=secrets[name])
        for name in ("registry", "base")
    )
    base_layout.push(base.repository_url("base:1"), username="ann", password=secrets["base"])
    with serve_index(wheel_folder(tmp_path / "wheels"), auth=("bob", secrets["index"])) as index:
        yield Planted(registry, base, index, base.repository_url("base:1"), secrets)
    end(registry.pid)
    end(base.pid)


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files, of this process and those it starts."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def documents(session: Session) -> dict[str, str]:
    """The content of every block document, decrypted, by name."""
    with closing(sqlite3.connect(session.folder / "prefect-server" / "prefect.db")) as database:
        (key,) = database.execute("SELECT value FROM configuration WHERE key = 'ENCRYPTION_KEY'").fetchone()
        rows = database.execute("SELECT name, data FROM block_document").fetchall()
    fernet = Fernet(json.loads(key)["fernet_key"])
    return {name: fernet.decrypt(json.loads(data)).decode() for name, data in rows}


def rows(session: Session, file: Path) -> Path:
    """All rows of the server's database as text: in the database's own pages a long value stands in pieces."""
    with closing(sqlite3.connect(session.folder / "prefect-server" / "prefect.db")) as database:
        file.write_text("\n".join(database.iterdump()))
    return file


def small_files(folder: Path) -> list[Path]:
    return smaller_files(folder, _BASE_LAYER)


def failure(definition: EnvironmentDefinition, workspace: Workspace) -> str:
    """Everything that the error of a build tells: text, repr, and traceback with its causes."""
    with pytest.raises(PrefectEnvironmentsError) as caught:
        build_environment(definition, workspace)
    error = caught.value
    return "\n".join([str(error), repr(error), *traceback.format_exception(error)])


@pytest.mark.parametrize("saved", [False, True], ids=["unsaved", "saved"])
def test_planted_secrets_stay_in_their_own_blocks(
    saved: bool, planted: Planted, tmp_path: Path, test_session: Session, request: pytest.FixtureRequest
) -> None:
    """Cold, warm and failing builds, by this process and by a worker; then a search of all that is left."""
    request.getfixturevalue("run_logs")
    capture, scratch = request.getfixturevalue("capfd"), request.getfixturevalue("scratch")
    definition = EnvironmentDefinition(
        name=unique("env"),
        base_image=planted.base_image,
        base_image_username="ann",
        base_image_password=planted.keep("base"),
        requirements=("spam",),
        environment_variables={"API_TOKEN": planted.keep("variable")},
    )
    workspace = planted.workspace(saved=saved)
    state = build_environment(definition, workspace, return_state=True)
    assert not state.result().reused
    assert build_environment(definition, workspace).reused
    folder = tmp_path / "folder"
    here = Workspace.local(folder).model_copy(update={"index": workspace.index})
    assert not build_environment(definition, here).reused
    told = [failure(definition, planted.workspace(saved=saved, wrong=wrong)) for wrong in ("registry", "index")]
    if saved:
        request.getfixturevalue("deployed")
        other = definition.model_copy(update={"name": unique("env"), "requirements": ("ham",)})
        parameters = {
            "environment": other.model_dump(mode="json"),
            "workspace": {"$ref": {"block_document_id": str(workspace._block_document_id)}},
        }
        run, printed = run_by_worker(parameters, tmp_path / "worker")
        assert run.run.state is not None
        assert run.run.state.is_completed(), printed
        told.append(printed)
    Run(state.state_details.flow_run_id).messages("Finished in state")
    shown = capture.readouterr()
    left = tmp_path / "left"
    left.mkdir()
    (left / "told").write_text("\n".join([*told, shown.out, shown.err, request.getfixturevalue("caplog").text]))
    rows(test_session, left / "rows.sql")
    assert "build-environment" in (left / "told").read_text()
    assert definition.name in (left / "rows.sql").read_text()
    server = test_session.folder / "prefect-server"
    logs, cache = test_session.folder / "logs", test_session.folder / "cache"
    images, layout = small_files(planted.registry.folder), small_files(folder)
    assert len(images) > 10 and len(layout) > 10
    plain = documents(test_session)
    for name, secret in planted.secrets.items():
        assert find_secret(secret, left, server, logs, cache, *images, *layout) == [], name
        assert {document for document, data in plain.items() if secret in data} == planted.owners[secret], name
    assert [path for path in scratch.rglob("*") if path.is_file()] == []


def test_the_search_finds_what_is_there(test_session: Session, tmp_path: Path) -> None:
    """The control: a secret in a flow run's log or a version's record would stand in the rows, one in a block does
    stand in its document."""
    secret, name = f"planted-{token_hex(8)}", unique("control")
    Secret(value=SecretStr(secret)).save(name)
    assert [document for document, data in documents(test_session).items() if secret in data] == [name]
    Secret(value=SecretStr("other-value")).save(secret)  # names of documents are not encrypted
    assert find_secret(secret, rows(test_session, tmp_path / "rows.sql")) != []
    assert find_secret(secret, test_session.folder / "prefect-server") != []

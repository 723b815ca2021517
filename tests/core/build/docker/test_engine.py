"""Finding a Docker engine, and the private configuration that a docker command gets for one build."""

import base64
import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from prefect_environments.core.build.docker.build import build_image
from prefect_environments.core.build.docker.client_config import client_folder, hide
from prefect_environments.core.build.docker.commands import answer, docker_commands
from prefect_environments.core.build.docker.engine import find_engine
from prefect_environments.core.build.docker.inputs import BuildInputs
from prefect_environments.core.errors import BuildError, DefinitionError, EngineUnavailable
from prefect_environments.core.redact import redact

HOST = "registry.example.com:5000"
PASSWORD = "pass-word-51ac77"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's configuration folder of the docker command."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    return folder


def test_no_engine_at_docker_host_is_told_with_advice(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was tried, and nothing else is tried in its place; user-info of an address is not shown."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{home}/absent.sock")
    with pytest.raises(EngineUnavailable, match=r"absent\.sock: No such file.*DOCKER_HOST") as failure:
        find_engine()
    assert "/var/run/docker.sock" not in str(failure.value)
    monkeypatch.setenv("DOCKER_HOST", f"tcp://ann:{PASSWORD}@127.0.0.1:1")
    with pytest.raises(EngineUnavailable, match=r"127\.0\.0\.1:1") as failure:
        find_engine()
    assert PASSWORD not in str(failure.value)


def test_the_context_of_the_configuration_is_the_place(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chosen context is the only one that is tried; one that does not exist is an error."""
    name = "lab"
    folder = home / "contexts/meta" / hashlib.sha256(name.encode()).hexdigest()
    folder.mkdir(parents=True)
    endpoint = {"docker": {"Host": f"unix://{home}/lab.sock", "SkipTLSVerify": False}}
    (folder / "meta.json").write_text(json.dumps({"Name": name, "Metadata": {}, "Endpoints": endpoint}))
    (home / "config.json").write_text(json.dumps({"currentContext": name}))
    with pytest.raises(EngineUnavailable, match=r"lab\.sock"):
        find_engine()
    monkeypatch.setenv("DOCKER_CONTEXT", "absent")
    with pytest.raises(EngineUnavailable, match="'absent' does not exist"):
        find_engine()


def test_the_private_folder_keeps_what_a_build_needs_of_the_users(home: Path, tmp_path: Path) -> None:
    """Helpers, stores, other logins, proxies, contexts and plugins go on working; the rest is left out."""
    given = {
        "auths": {"other.example.com": {"auth": "b3RoZXI6cHc="}},
        "credHelpers": {HOST: "lab"},
        "credsStore": "desktop",
        "proxies": {"default": {"httpProxy": "http://proxy.example.com"}},
        "currentContext": "lab",
        "psFormat": "table",
    }
    (home / "config.json").write_text(json.dumps(given))
    (home / "contexts").mkdir()
    (home / "cli-plugins").mkdir()
    with client_folder({HOST: ("ann", PASSWORD)}, {}, tmp_path / "scratch", os.environ) as folder:
        found = json.loads((folder.path / "config.json").read_text())
        assert (folder.path / "contexts").resolve() == home / "contexts"
        assert (folder.path / "cli-plugins").resolve() == home / "cli-plugins"
    encoded = base64.b64encode(f"ann:{PASSWORD}".encode()).decode()
    assert found.pop("auths") == {"other.example.com": {"auth": "b3RoZXI6cHc="}, HOST: {"auth": encoded}}
    assert found.pop("credHelpers") == {HOST: ""}  # our login is read, not the helper's or the store's
    assert found == {name: given[name] for name in ("credsStore", "proxies", "currentContext")}
    assert json.loads((home / "config.json").read_text()) == given
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize("memory", [True, False])
def test_secrets_are_for_their_owners_eyes_and_gone_at_the_end(
    home: Path, tmp_path: Path, memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In memory where the system can, else in files of mode 0600; the folder is 0700 and goes in any case."""
    if not memory:
        monkeypatch.delattr(os, "memfd_create")
    with (
        pytest.raises(KeyError, match="on purpose"),
        client_folder(
            {HOST: ("ann", PASSWORD)}, {"a": "value-a\n", "b": "é"}, tmp_path / "scratch", os.environ
        ) as made,
    ):
        assert stat.S_IMODE(made.path.stat().st_mode) == 0o700
        assert {name: path.read_text() for name, path in made.secrets.items()} == {"a": "value-a\n", "b": "é"}
        on_disk = [path for path in made.path.iterdir() if path.is_file() and not path.is_symlink()]
        assert len(on_disk) == (0 if memory else 3)
        assert {stat.S_IMODE(path.stat().st_mode) for path in made.path.iterdir()} == {0o600}
        raise KeyError("on purpose")
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_broken_configuration_is_named_and_not_shown(home: Path, tmp_path: Path) -> None:
    """The message has the file, and nothing of what is in it."""
    (home / "config.json").write_text(f'{{"auths": {PASSWORD}')
    with (
        pytest.raises(BuildError, match=r"config\.json cannot be read") as failure,
        client_folder({}, {}, tmp_path / "scratch", os.environ),
    ):
        pass
    assert PASSWORD not in str(failure.value)


def test_secrets_are_masked_in_every_form_that_a_build_prints() -> None:
    """A password as itself and in an Authorization header; a secret of several lines line by line."""
    hide({HOST: ("ann", PASSWORD)}, {"a": "line-one-77\n  line-two-88 \n"})
    encoded = base64.b64encode(f"ann:{PASSWORD}".encode()).decode()
    for text in (PASSWORD, encoded, "line-one-77", "line-two-88"):
        assert text not in redact(f"said {text} loud")


async def test_every_docker_command_on_path_is_a_candidate_once(tmp_path: Path) -> None:
    """In the order of PATH; the same file by another name is not asked again; a failing one has no answer."""
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    for folder in (first, second):
        folder.mkdir()
        (folder / "docker").write_text(f"#!/bin/sh\necho {folder.name}\ntest {folder.name} = second\n")
        (folder / "docker").chmod(0o755)
    third.symlink_to(second)
    env = {"PATH": f"{first}::/nonexistent:{second}:{third}"}
    found = docker_commands(env)
    assert found == [str(first / "docker"), str(second / "docker")]
    assert [await answer([path], env) for path in found] == [None, "second"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"network": "--privileged"}, "network is a mode"),
        ({"builder": "podman"}, "auto, buildkit or classic"),
        ({"logins": {"https://registry.example.com/": ("ann", PASSWORD)}}, "scheme"),
        ({"inputs": BuildInputs("FROM base AS one", target="two")}, "no stage 'two'"),
    ],
)
async def test_what_cannot_be_built_is_refused_before_an_engine_is_asked(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], said: str
) -> None:
    """There is none here, and that is not what the error says; the scratch folder is not touched."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{home}/absent.sock")
    given = {"inputs": BuildInputs("FROM base"), "logins": {}, **options}
    inputs = given.pop("inputs")
    secrets = dict.fromkeys(inputs.secrets, "value")
    with pytest.raises(DefinitionError, match=said):
        await build_image(inputs, secrets=secrets, scratch=tmp_path / "scratch", **given)
    assert not (tmp_path / "scratch").exists()
    with pytest.raises(EngineUnavailable, match=r"absent\.sock"):
        await build_image(BuildInputs("FROM base"), secrets={}, logins={}, scratch=tmp_path / "scratch")

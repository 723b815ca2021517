"""From references and addresses to stores: `ImageLocation`, and which client an address opens."""

from pathlib import Path

import pytest

from prefect_environments.core.distribution.registry import Registry
from prefect_environments.core.errors import DefinitionError, NotFound, SecretError
from prefect_environments.core.oci.layout import Layout
from prefect_environments.core.registry_settings import RegistrySettings
from prefect_environments.core.secrets import SecretReference
from prefect_environments.core.stores import ImageLocation, open_store, reference_of

DIGEST = "sha256:" + "a" * 64


class NoSecrets:
    async def get(self, reference: SecretReference) -> str:
        raise SecretError(f"{reference} is not known here")


@pytest.mark.parametrize(
    ("text", "address", "path", "identifier", "name"),
    [
        ("python:3.12-slim", "docker.io", "library/python", "3.12-slim", "docker.io/library/python:3.12-slim"),
        ("python", "docker.io", "library/python", "latest", "docker.io/library/python:latest"),
        ("Registry.example.com:5000/a/b:t", "registry.example.com:5000", "a/b", "t", "registry.example.com:5000/a/b:t"),
        (f"r.example.com/a@{DIGEST}", "r.example.com", "a", DIGEST, "r.example.com/a"),
        (f"r.example.com/a:t@{DIGEST}", "r.example.com", "a", DIGEST, "r.example.com/a:t"),
        ("oci:/images:base", "oci:/images", "", "base", "base"),
        ("oci:/images:team/py:3.12", "oci:/images", "", "team/py:3.12", "team/py:3.12"),
        (f"oci:/images:team/py@{DIGEST}", "oci:/images", "team/py", DIGEST, "team/py"),
    ],
)
def test_a_reference_is_taken_apart(text: str, address: str, path: str, identifier: str, name: str) -> None:
    """The name that a lock has for it holds neither the digest, which stands beside it, nor a machine's folder."""
    assert ImageLocation.parse(text) == ImageLocation(address, path, identifier, name)


def test_a_relative_layout_folder_counts_from_the_current_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert ImageLocation.parse("oci:images:base").address == f"oci:{tmp_path / 'images'}"


@pytest.mark.parametrize("text", ["oci:", "oci:/images", "oci:/images:", "oci::base", "", "Team/Py", "a b", "x@latest"])
def test_what_names_no_image_is_refused_with_the_form_that_is_wanted(text: str) -> None:
    with pytest.raises(DefinitionError):
        ImageLocation.parse(text)


async def test_an_address_opens_a_folder_or_a_registry(tmp_path: Path) -> None:
    folder = await open_store(RegistrySettings(f"oci:{tmp_path / 'images'}"), NoSecrets())
    registry = await open_store(RegistrySettings("registry.example.com"), NoSecrets())
    assert (type(folder), type(registry)) == (Layout, Registry)
    assert registry.address == "registry.example.com"
    await registry.close()
    assert not (tmp_path / "images").exists(), "looking into a layout makes none"


async def test_a_reference_that_cannot_be_resolved_opens_nothing() -> None:
    with pytest.raises(SecretError, match="secret:unknown is not known here"):
        await open_store(RegistrySettings("registry.example.com", "ann", "secret:unknown"), NoSecrets())


async def test_a_repositorys_reference_is_read_back_as_the_same_image(tmp_path: Path) -> None:
    """What a version records is a base image that another environment can name."""
    for settings in (RegistrySettings(f"oci:{tmp_path}"), RegistrySettings("registry.example.com")):
        store = await open_store(settings, NoSecrets())
        repository = store.repository("environments/iris")
        found = ImageLocation.parse(reference_of(repository, DIGEST))
        assert (found.address, found.path, found.identifier) == (store.address, "environments/iris", DIGEST)
        await store.close()


async def test_an_image_that_a_layout_does_not_have_is_not_found(tmp_path: Path) -> None:
    store = await open_store(RegistrySettings(f"oci:{tmp_path / 'images'}"), NoSecrets())
    location = ImageLocation.parse(f"oci:{tmp_path / 'images'}:base")
    with pytest.raises(NotFound):
        await store.repository(location.path).get_manifest(location.identifier)

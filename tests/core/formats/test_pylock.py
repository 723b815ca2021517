"""A given lock: what is read of it, what is refused, and which of its packages an image takes."""

from dataclasses import replace
from pathlib import Path

import pytest

from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import DefinitionError, SpecificationError
from prefect_environments.core.formats import pylock
from prefect_environments.core.lock.target import Target

TARGET = Target("3.12.7", "/usr/bin/python3", "glibc", "2.36")
SHA = "a" * 64


def lock(*packages: str, head: str = 'lock-version = "1.0"\ncreated-by = "x"\n') -> str:
    return head + "".join(f"\n[[packages]]\n{table}" for table in packages)


def wheel(name: str, *, more: str = "", version: str = "1.0", hashes: str = f'{{sha256 = "{SHA}"}}') -> str:
    file = f"{name}-{version}-py3-none-any.whl"
    address = f"https://files.example.com/{file}"
    return (
        f'name = "{name}"\nversion = "{version}"\n{more}'
        f'wheels = [{{name = "{file}", url = "{address}", hashes = {hashes}}}]\n'
    )


def names(text: str, target: Target = TARGET) -> list[str]:
    return [package.name for package in pylock.packages_for(text, target)]


def test_what_does_not_count_does_not_stay(tmp_path: Path) -> None:
    """Comments, tools' tables and the tool that wrote it are not part of what is asked for."""
    (tmp_path / "pylock.toml").write_text("# hello\n" + lock(wheel("a")) + '[packages.tool.x]\ny = "z"\n')
    (tmp_path / "pylock.dev.toml").write_bytes(lock(wheel("a"), head='lock-version="1.0"\r\n').encode("utf-8-sig"))
    one, two = pylock.read(tmp_path / "pylock.toml"), pylock.read(tmp_path / "pylock.dev.toml")
    assert one == two
    assert "hello" not in one and "created-by" not in one
    assert pylock.normalise(one) == one


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("lock-version = ", "not TOML"),
        ("numpy==1.0", "not TOML"),
        ('lock-version = "2.0"', "expected 1.x of PEP 751"),
        ("[[package]]\nname = 'a'", "lock-version None"),
        (lock(wheel("a", hashes="{}")), "no sha256 for a-1.0-py3-none-any.whl"),
        (lock(wheel("a", hashes='{md5 = "x"}')), "no sha256"),
        (lock(wheel("a", hashes='{sha256 = "short"}')), "not a lock that can be used"),
        (lock(wheel("a", more="marker = 'what'\n")), "not a lock that can be used"),
        (lock('version = "1"'), "not a lock that can be used"),
        (lock(wheel("a"), head='lock-version = "1.0"\nenvironments = ["what"]\n'), "no markers"),
        (lock(wheel("a"), head='lock-version = "1.0"\ndefault-groups = [1]\n'), "no list of names"),
        (lock('name = "a"\nwheels = [{path = "a-1-py3-none-any.whl", hashes = {sha256 = "b"}}]'), "relative"),
        (lock('name = "a"\nwheels = [{path = "/a\\u0000", hashes = {sha256 = "b"}}]'), "not a lock that can be used"),
        (lock(wheel("a", hashes=f'{{sha256 = "{SHA.upper()}"}}')), "a-1.0-py3-none-any.whl: sha256 'AAAA"),
        ("a = " + "[" * 20_000, "not TOML"),
    ],
)
def test_what_is_no_lock_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(SpecificationError, match=why):
        pylock.normalise(text)
    with pytest.raises(DefinitionError, match=why):
        EnvironmentDefinition(name="a", pylock=text)


@pytest.mark.parametrize(
    ("plain", "secret"), [("https://", "https://ann:hunter2@"), ('any.whl"', 'any.whl?sig=hunter2"')]
)
def test_an_address_with_a_password_or_signature_is_refused_and_not_shown(plain: str, secret: str) -> None:
    text = lock(wheel("a")).replace(plain, secret)
    assert "hunter2" in text
    with pytest.raises(SpecificationError, match="credentials block") as caught:
        pylock.normalise(text)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("marker", ["extra == 'x'", "extras == 'x'"])
def test_a_marker_that_no_lock_can_have_is_told(marker: str) -> None:
    text = pylock.normalise(lock(wheel("a", more=f'marker = "{marker}"\n')))
    with pytest.raises(SpecificationError, match="a has the marker"):
        pylock.packages_for(text, TARGET)


def test_relative_paths_are_those_of_the_lock_file(tmp_path: Path) -> None:
    text = lock(
        f'name = "a"\nversion = "1"\nwheels = [{{path = "w/a-1-py3-none-any.whl", hashes = {{sha256 = "{SHA}"}}}}]'
    )
    (tmp_path / "pylock.toml").write_text(text)
    (package,) = pylock.packages_for(pylock.read(tmp_path / "pylock.toml"), TARGET)
    assert package.wheels[0].url == (tmp_path / "w/a-1-py3-none-any.whl").as_uri()


@pytest.mark.parametrize("name", ["lock.toml", "pylock.a.b.toml", "requirements.txt", "uv.lock"])
def test_only_files_with_a_locks_name_are_read(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(lock(wheel("a")))
    with pytest.raises(SpecificationError, match="not named as a lock"):
        pylock.read(tmp_path / name)


def test_markers_are_those_of_the_image() -> None:
    text = lock(
        wheel("a"),
        wheel("b", more="marker = \"sys_platform == 'win32'\"\n"),
        wheel("c", more="marker = \"python_version < '3.13'\"\n"),
        wheel("c", version="2.0", more="marker = \"python_version >= '3.13'\"\n"),
        wheel("d", more="marker = \"'gpu' in extras\"\n"),
        wheel("e", more="marker = \"'dev' in dependency_groups\"\n"),
    )
    assert names(text) == ["a", "c"]
    (_, c) = pylock.packages_for(text, replace(TARGET, python="3.13.1"))
    assert c.version == "2.0"
    assert names(text.replace('"1.0"\n', '"1.0"\ndefault-groups = ["dev"]\n', 1)) == ["a", "c", "e"]


def test_a_lock_for_another_python_or_platform_is_refused_before_anything_is_fetched() -> None:
    head = 'lock-version = "1.0"\nrequires-python = ">=3.13"\n'
    with pytest.raises(SpecificationError, match=r"requires Python >=3\.13, and the image has Python 3\.12\.7"):
        names(lock(wheel("a"), head=head))
    with pytest.raises(SpecificationError, match=r"a 1\.0 requires Python <3"):
        names(lock(wheel("a", more='requires-python = "<3"\n')))
    head = 'lock-version = "1.0"\nenvironments = ["sys_platform == \'win32\'"]\n'
    with pytest.raises(SpecificationError, match="for other environments than the image"):
        names(lock(wheel("a"), head=head))

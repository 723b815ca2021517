"""conda environments from their definition to a container: resolved, pip's packages on top, on bases without Python."""

from pathlib import Path

import pytest

from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.environment import Environment
from prefect_environments.core.errors import DefinitionError, ResolveError, SpecificationError
from tests.images.conftest import Define
from tests.images.parts import Team, build, conforms
from tests.support.base import BaseLayout
from tests.support.channel import Channel, CondaPackage
from tests.support.conda_python import debian_python
from tests.support.engine import DockerEngine
from tests.support.wheels import make_wheel


def environment_file(folder: Path, conda_channel: Path, *conda: str, pip: tuple[str, ...] = ()) -> Path:
    lines = ["name: demo", "channels:", f"  - {conda_channel}", "  - nodefaults", "dependencies:"]
    lines += [f"  - {spec}" for spec in conda]
    lines += ["  - pip:", *(f"    - {line}" for line in pip)] if pip else []
    (folder / "environment.yml").write_text("\n".join(lines) + "\n")
    return folder / "environment.yml"


async def test_an_environment_file_becomes_an_image_that_runs(
    *,
    team: Team,
    bare: BaseLayout,
    conda_channel: Path,
    wheels: Path,
    docker_engine: DockerEngine,
    tmp_path: Path,
) -> None:
    """conda's Python on a base without one, a noarch package with its command, and pip's section on top."""
    pip = ("alpha", f"--find-links {wheels}", "--no-index")
    path = environment_file(tmp_path, conda_channel, "python=3.11", "greeter", "pip", pip=pip)
    environment = Environment.from_conda_specification("demo", path)
    environment.docker.base_image = bare.reference
    found = await build(team, environment.definition(), tmp_path / "cache")
    assert found.lock is not None
    assert {"python", "greeter", "pip"} <= {package.name for package in found.lock.conda}
    assert [package.name for package in found.lock.packages] == ["alpha", "beta"]  # pip is conda's own
    assert found.lock.target.interpreter == "/opt/env/bin/python"
    check = (
        "import alpha, greeter, sys, subprocess; assert sys.prefix == '/opt/env', sys.prefix;"
        "subprocess.run(['greet'], check=True); subprocess.run(['alpha-say'], check=True)"
    )
    await conforms(found.ready.reference, tmp_path / "conforms", engine=docker_engine, check=check)
    again = await build(team, environment.definition(), tmp_path / "cache")
    assert again.ready.reused and again.ready.version == 1
    more = Environment.from_conda_specification(
        "demo", environment_file(tmp_path, conda_channel, "python=3.11", "greeter", "pip", "prefixed", pip=pip)
    )
    more.docker.base_image = bare.reference
    added = await build(team, more.definition(), tmp_path / "empty-cache")
    assert added.sent_layers == ["prefixed=2.0=h1_0"]


async def test_where_only_python_and_pip_are_asked_for_the_bases_own_python_serves(
    team: Team, define: Define, open_base: str, tmp_path: Path
) -> None:
    """No channel is needed, and the image is the one of the requirements alone."""
    plain = await build(team, define("alpha", base_image=open_base), tmp_path / "cache")
    assert plain.lock is not None
    minor = plain.lock.target.python_minor
    asked = define("alpha", base_image=open_base, conda_dependencies=(f"python={minor}", "pip"))
    conda = await build(team, asked, tmp_path / "cache")
    assert conda.ready.digest == plain.ready.digest
    assert conda.lock is not None and not conda.lock.conda


async def test_another_python_or_a_conda_package_needs_a_channel_and_the_error_says_so(
    team: Team, define: Define, open_base: str, tmp_path: Path
) -> None:
    for spec in ("python=2.7", "numpy"):
        with pytest.raises(DefinitionError, match="names no channel"):
            await build(team, define(base_image=open_base, conda_dependencies=(spec,)), tmp_path / "cache")


@pytest.mark.parametrize("field", ["conda_dependencies", "conda_channels"])
async def test_what_conda_would_not_read_is_refused_before_any_network(
    field: str, team: Team, define: Define, tmp_path: Path
) -> None:
    fields = {"conda_dependencies": ("numpy",), "conda_channels": ("/channel",)}
    wanted = define(base_image="registry.example.com/none:1", **(fields | {field: ("~/what is =this=",)}))
    with pytest.raises(SpecificationError):
        await build(team, wanted, tmp_path / "cache")


async def test_an_extension_of_a_conda_environment_adds_one_layer_and_moves_nothing(
    team: Team, bare: BaseLayout, conda_channel: Path, tmp_path: Path
) -> None:
    base = EnvironmentDefinition(
        name="base",
        base_image=bare.reference,
        conda_channels=(str(conda_channel),),
        conda_dependencies=("python", "greeter"),
    )
    first = await build(team, base, tmp_path / "cache")
    more = EnvironmentDefinition(name="more", extends="base:1", conda_dependencies=("prefixed",))
    second = await build(team, more, tmp_path / "cache")
    assert first.lock is not None and second.lock is not None
    assert set(first.lock.conda) < set(second.lock.conda)
    assert {p.name for p in set(second.lock.conda) - set(first.lock.conda)} == {"prefixed"}
    assert second.sent_layers[-1] == "prefixed=2.0=h1_0" and len(second.sent_layers) == 2  # and the empty environment


async def test_an_extension_pins_what_conda_brought_also_on_upgrade(
    team: Team, bare: BaseLayout, tmp_path: Path
) -> None:
    """A newer release and a build with a higher number appear; what needs the newer one is an error that says so."""
    python = debian_python()
    channel = Channel(tmp_path / "channel")
    channel.add_archive(python.package, python.archive.read_bytes())
    channel.add(CondaPackage("leaf", files={"share/leaf.txt": b"1"}), CondaPackage("twig", files={"share/twig": b"1"}))
    base = EnvironmentDefinition(
        name="base",
        base_image=bare.reference,
        conda_channels=(str(channel.folder),),
        conda_dependencies=("python", "leaf"),
    )
    first = await build(team, base, tmp_path / "cache")
    channel.add(
        CondaPackage("leaf", "1.0", "new_1", build_number=1, files={"share/leaf.txt": b"1.0 again"}),
        CondaPackage("leaf", "2.0", files={"share/leaf.txt": b"2"}),
        CondaPackage("greedy", depends=("leaf >=2",), files={"share/greedy": b"1"}),
    )
    more = EnvironmentDefinition(name="more", extends="base:1", conda_dependencies=("twig",))
    found = await build(team, more, tmp_path / "fresh", upgrade=True)
    assert first.lock is not None and found.lock is not None
    assert {p.name for p in set(found.lock.conda) - set(first.lock.conda)} == {"twig"}
    assert set(first.lock.conda) < set(found.lock.conda)
    greedy = EnvironmentDefinition(name="more", extends="base:1", conda_dependencies=("greedy",))
    with pytest.raises(ResolveError, match="leaf"):
        await build(team, greedy, tmp_path / "fresh")


async def test_condas_python_is_checked_against_requires_python_also_without_pips_part(
    team: Team, bare: BaseLayout, conda_channel: Path, tmp_path: Path
) -> None:
    wanted = EnvironmentDefinition(
        name="demo",
        base_image=bare.reference,
        conda_channels=(str(conda_channel),),
        conda_dependencies=("python",),
        requires_python="<3",
    )
    with pytest.raises(SpecificationError, match="requires Python <3, and the image has Python 3"):
        await build(team, wanted, tmp_path / "cache")


async def test_a_wheel_that_is_named_by_its_address_replaces_condas_package_of_the_same_version(
    team: Team, bare: BaseLayout, conda_channel: Path, tmp_path: Path
) -> None:
    wheel = make_wheel(tmp_path, "greeter", "1.2", {"greeter/__init__.py": b"def main():\n    print('own')\n"})
    wanted = EnvironmentDefinition(
        name="demo",
        base_image=bare.reference,
        conda_channels=(str(conda_channel),),
        conda_dependencies=("python", "greeter", "pip"),
        requirements=(f"greeter @ {wheel.as_uri()}",),
        no_index=True,
    )
    found = await build(team, wanted, tmp_path / "cache")
    assert found.lock is not None
    assert [p.filename for p in found.lock.packages] == [wheel.name]

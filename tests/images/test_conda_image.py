"""conda packages in images: linked at the prefix, one layer each, the same bytes everywhere, running in a container."""

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from prefect_environments.core import steps
from prefect_environments.core.build import recipe
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.lock.model import Lock, LockedBase, LockedCondaPackage, LockedPackage
from prefect_environments.core.lock.target import Target
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.validate import validate
from prefect_environments.core.site import open_site
from prefect_environments.core.steps import BuiltImage
from tests.images.parts import Team, read_image, repository_of
from tests.support.base import BaseLayout
from tests.support.channel import SUBDIR
from tests.support.engine import DockerEngine
from tests.support.wheels import make_wheel

LOOK = """
import importlib.metadata, json, os, pathlib, subprocess, sys
prefix = pathlib.Path('/opt/env')
import alpha, greeter, native
print(json.dumps({
    'python': [sys.executable, sys.prefix, sys.base_prefix],
    'variables': [os.environ.get(name) for name in ('CONDA_PREFIX', 'CONDA_DEFAULT_ENV', 'VIRTUAL_ENV')],
    'first on PATH': os.environ['PATH'].split(':')[0],
    'greet': subprocess.run(['greet'], capture_output=True, text=True).stdout,
    'alpha': subprocess.run(['alpha-say'], capture_output=True, text=True).stdout,
    'native': native.ANSWER,
    'script': subprocess.run(['prefixed'], capture_output=True, text=True).stdout,
    'text': (prefix / 'lib/pkgconfig/prefixed.pc').read_text(),
    'binary': (prefix / 'lib/libprefixed.so').read_bytes().hex(),
    'hard link': (prefix / 'share/prefixed/two.txt').read_text(),
    'clobbered': (prefix / 'share/clobber/shared.txt').read_text(),
    'post-link ran': (prefix / 'post-link-ran').exists(),
    'listed': sorted(json.loads(path.read_text())['name'] for path in prefix.glob('conda-meta/*.json')),
    'missing': [f for path in prefix.glob('conda-meta/*.json') for f in json.loads(path.read_text())['files']
                if not os.path.lexists(prefix / f)],
    'history': (prefix / 'conda-meta/history').is_file(),
    'alpha is at': alpha.__file__,
}))
"""


@pytest.fixture(scope="session")
def known(conda_channel: Path) -> Mapping[str, LockedCondaPackage]:
    """The channel's packages by name."""
    found = {}
    for subdir in (SUBDIR, "noarch"):
        document = json.loads((conda_channel / subdir / "repodata.json").read_text())
        for filename, record in (document["packages"] | document["packages.conda"]).items():
            found[record["name"]] = LockedCondaPackage(
                record["name"],
                record["version"],
                record["build"],
                subdir,
                filename,
                record["sha256"],
                record["size"],
                (conda_channel / subdir / filename).as_uri(),
            )
    return found


class Builder:
    """Builds locks of conda packages and wheels on the bare base, each with a cache of its own."""

    def __init__(self, team: Team, bare: BaseLayout, known: Mapping[str, LockedCondaPackage], folder: Path) -> None:
        self.team, self.bare, self.known, self.folder = team, bare, known, folder
        self.builds = 0

    def lock(self, *conda: str, pip: tuple[Path, ...] = ()) -> Lock:
        packages = tuple(self.known[name] for name in ("python", *conda))
        target = Target(self.known["python"].version, recipe.executable(), "glibc", "2.36")
        wheels = tuple(
            replace(LockedPackage.of_file(path.name, digests.of_file(path)[7:], path.stat().st_size), url=path.as_uri())
            for path in pip
        )
        return Lock(LockedBase("example.com/bare:1", self.bare.digest), target, wheels, conda=packages)

    async def build(self, lock: Lock, *, team: Team | None = None) -> BuiltImage:
        self.builds += 1
        definition = EnvironmentDefinition(name="demo", base_image=self.bare.reference)
        async with open_site(team or self.team, cache=self.folder / f"cache-{self.builds}") as site:
            image = await steps.build(site, definition, lock)
            await steps.register(site, definition, image)
            return image


@pytest.fixture
def builder(team: Team, bare: BaseLayout, known: Mapping[str, LockedCondaPackage], tmp_path: Path) -> Builder:
    return Builder(team, bare, known, tmp_path)


ALL = ("pip", "greeter", "datafiles", "native", "prefixed", "clobber-a", "clobber-b", "linkscript")


async def test_all_that_conda_packages_do_works_in_a_container(
    builder: Builder, docker_engine: DockerEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Prefixes in text and binaries, links, noarch modules, commands, a wheel on top; what is not so is reported."""
    alpha = make_wheel(
        tmp_path,
        "alpha",
        "1.0",
        {"alpha.py": b"def main():\n    print('alpha')\n"},
        entry_points={"alpha-say": "alpha:main"},
    )
    with caplog.at_level(logging.WARNING):
        built = await builder.build(builder.lock(*ALL, pip=(alpha,)))
    assert [(o.path, o.loser, o.winner) for o in built.overlaps] == [
        ("opt/env/share/clobber/shared.txt", "clobber-a", "clobber-b")
    ]
    assert "linkscript: bin/.linkscript-post-link.sh is not run" in caplog.text
    async with repository_of(built.reference) as (repository, digest):
        await validate(repository, digest, tmp_path / "validate")
    docker_engine.pull(built.reference)
    seen = json.loads(docker_engine.run(built.reference, "python", "-c", LOOK))
    binary = bytes.fromhex(seen.pop("binary"))
    assert b"/opt/env/lib/x.so\0" in binary and b"/opt/env/share\0" in binary and b"placehold" not in binary
    minor = builder.lock().target.python_minor
    assert seen == {
        "python": ["/opt/env/bin/python", "/opt/env", "/opt/env"],
        "variables": ["/opt/env", "/opt/env", None],
        "first on PATH": "/opt/env/bin",
        "greet": "hello from greeter\n",
        "alpha": "alpha\n",
        "native": 42,
        "script": "/opt/env\n",
        "text": "prefix=/opt/env\n",
        "hard link": "linked\n",
        "clobbered": "from clobber-b\n",
        "post-link ran": False,
        "listed": sorted(["python", *ALL]),
        "missing": [],
        "history": True,
        "alpha is at": f"/opt/env/lib/python{minor}/site-packages/alpha.py",
    }
    assert "No broken" in docker_engine.run(built.reference, "pip", "check")


async def test_the_same_lock_gives_the_same_image_from_any_cache(builder: Builder, tmp_path: Path) -> None:
    lock = builder.lock(*ALL)
    other = Team.on(tmp_path / "layout", tmp_path / "other-versions")
    first, second = await builder.build(lock), await builder.build(lock, team=other)
    assert first.descriptor == second.descriptor
    assert not second.reused and not any(layer.reused for layer in second.layers if "conda" in layer.title)


async def test_a_package_more_sends_one_layer(builder: Builder) -> None:
    """By a worker with an empty cache, which downloads nothing but that package."""
    await builder.build(builder.lock("greeter", "datafiles", "native"))
    more = await builder.build(builder.lock("greeter", "datafiles", "native", "prefixed"))
    assert [layer.packages for layer in more.layers if not layer.reused] == [("prefixed 2.0",)]
    fetched = [path.name for path in (builder.folder / "cache-2" / "wheels").iterdir() if len(path.name) == 64]
    assert fetched == [builder.known["prefixed"].sha256]


async def test_conda_layers_lie_below_pips(builder: Builder, tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, "alpha", "1.0", {"alpha/data.bin": bytes(range(256)) * 4000})
    built = await builder.build(builder.lock("greeter", "datafiles", pip=(wheel,)))
    own = [layer for layer in built.layers if not layer.title.startswith("base ")]
    assert [layer.packages for layer in own] == [
        (),
        (f"python {builder.known['python'].version}",),
        ("greeter 1.2",),
        ("datafiles 1.0",),
        ("alpha 1.0",),
    ]
    async with repository_of(built.reference) as (repository, digest):
        _, config = await read_image(repository, digest)
    assert config.environment["CONDA_PREFIX"] == "/opt/env" and "VIRTUAL_ENV" not in config.environment


async def test_a_distribution_of_conda_that_pip_replaces_is_gone(
    builder: Builder, docker_engine: DockerEngine, tmp_path: Path
) -> None:
    """As pip would have uninstalled it: one version is visible, and no file of the other one is left."""
    wheel = make_wheel(tmp_path, "greeter", "9.0", {"greeter/new.py": b""}, entry_points={"hail": "greeter.new:main"})
    built = await builder.build(builder.lock("pip", "greeter", "datafiles", pip=(wheel,)))
    docker_engine.pull(built.reference)
    script = (
        "import importlib.metadata as m, json, greeter.new, os;"
        "print(json.dumps([[d.version for d in m.distributions() if d.name == 'greeter'],"
        "sorted(os.listdir(os.path.dirname(greeter.new.__file__))), os.path.exists('/opt/env/bin/greet'),"
        "os.path.exists('/opt/env/bin/hail')]))"
    )
    versions, files, old, new = json.loads(docker_engine.run(built.reference, "python", "-B", "-c", script))
    assert versions == ["9.0"] and not old and new
    assert files == ["new.py"], "not even the __init__.py of conda's"

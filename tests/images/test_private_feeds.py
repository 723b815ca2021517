"""A private index and a private channel: the passwords reach uv and rattler, and stand in no command line, no file that
stays, no lock and no image."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import ResolveError
from tests.images.parts import Secrets, Team, build
from tests.support.base import BaseLayout
from tests.support.channel import serve
from tests.support.leaks import everything_below, find_secret, smaller_files
from tests.support.registry import Registry
from tests.support.wheels import Index, serve_index

INDEX, CHANNEL = "planted-index-4e1b", "planted-channel-7c9d"
_BASE = 3_000_000  # bytes; layers of the base image and conda's Python are bigger


class Watched(list[str]):
    """The index's requests; at each of them uv is running, and so what the system shows of it can be looked at."""

    def __init__(self, scratch: Path) -> None:
        super().__init__()
        self.scratch = scratch
        self.commands: set[bytes] = set()
        self.modes: set[int] = set()
        """Modes of the files that hold the password at that moment, and of their folders."""

    def append(self, path: str) -> None:
        super().append(path)
        for place in Path("/proc").glob("[0-9]*/cmdline"):
            with suppressed():
                self.commands.add(place.read_bytes())
        for file in everything_below(self.scratch):
            with suppressed():
                if file.is_file() and INDEX.encode() in file.read_bytes():
                    self.modes |= {file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777}


@contextmanager
def suppressed() -> Iterator[None]:
    """Processes and files come and go."""
    try:
        yield
    except OSError:
        return


async def test_private_feeds_are_used_and_their_passwords_stay_nowhere(
    *, team: Team, bare: BaseLayout, conda_channel: Path, wheels: Path, open_registry: Registry, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    with (
        serve(conda_channel.parent, auth=("ann", CHANNEL)) as channel,
        serve_index(wheels, auth=("bob", INDEX)) as index,
    ):
        watched = Watched(cache)
        index.requests = watched
        wanted = definition(bare, f"{channel.url}/{conda_channel.name}", index)
        private = replace(
            team,
            secrets=Secrets({"index": INDEX, "channel": CHANNEL}),
            index_credentials={index.url: ("bob", "secret:index"), channel.url: ("ann", "secret:channel")},
        )
        found = await build(private, wanted, cache)
        assert channel.requests and not channel.refused
        again = await build(private, wanted, tmp_path / "another-cache", force=True)
    assert again.ready.digest == found.ready.digest
    assert found.lock is not None
    assert {"alpha", "beta"} <= {package.name for package in found.lock.packages}
    assert "greeter" in {package.name for package in found.lock.conda}
    commands = [line for line in watched.commands if b"pip\0compile" in line]
    assert commands, "uv was not seen, so nothing was looked at"
    assert [line for line in watched.commands if INDEX.encode() in line or CHANNEL.encode() in line] == []
    assert watched.modes == {0o600, 0o700}
    kept = [file for file in cache.rglob("*") if file.is_file()]
    sent = small_blobs(open_registry)
    assert len(kept) > 5 and len(sent) > 10
    for secret in (INDEX, CHANNEL):
        assert find_secret(secret, *(file for file in kept if file.stat().st_size < _BASE), *sent) == []
        assert secret not in repr((found, wanted, private))
        assert find_secret(secret, tmp_path / "versions") == []


async def test_a_wrong_password_of_an_index_is_told_and_not_shown(
    team: Team, bare: BaseLayout, base_layout: BaseLayout, wheels: Path, tmp_path: Path
) -> None:
    with serve_index(wheels, auth=("bob", INDEX)) as index:
        wanted = EnvironmentDefinition(
            name="demo", base_image=base_layout.reference, requirements=("alpha",), index_url=index.url
        )
        private = replace(
            team,
            secrets=Secrets({"index": "wr0ng-planted-word"}),
            index_credentials={index.url: ("bob", "secret:index")},
        )
        with pytest.raises(ResolveError, match="refused the credentials") as caught:
            await build(private, wanted, tmp_path / "cache")
    assert "wr0ng-planted-word" not in f"{caught.value}{caught.value!r}"


def definition(bare: BaseLayout, channel: str, index: Index) -> EnvironmentDefinition:
    return EnvironmentDefinition(
        name="demo",
        base_image=bare.reference,
        conda_channels=(channel,),
        conda_dependencies=("python", "greeter"),
        requirements=("alpha",),
        index_url=index.url,
    )


def small_blobs(registry: Registry) -> list[Path]:
    """What the registry keeps, but for big layers."""
    return smaller_files(registry.folder, _BASE)

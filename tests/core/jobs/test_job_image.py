"""Job images: their layers, what of them is sent, and which environments cannot host one. A real registry."""

import io
import json
import logging
import os
import subprocess
import sys
import tarfile
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest

from prefect_environments.core.build import recipe
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import BaseImageError, DefinitionError, ResolveError
from prefect_environments.core.jobs import runtime
from prefect_environments.core.jobs.job_image import JobImage, ensure_job_image
from prefect_environments.core.jobs.own_wheel import write_own_wheel
from prefect_environments.core.jobs.run import lock_of
from prefect_environments.core.jobs.source_layer import secret_files, warn_of_secrets, write_source
from prefect_environments.core.lock.model import LockedPackage
from prefect_environments.core.lock.target import Target
from prefect_environments.core.oci.image import ImageConfig, ImageManifest
from prefect_environments.core.oci.validate import validate
from prefect_environments.core.site import open_site
from prefect_environments.core.versions import VersionRecord
from tests.images.parts import Team, build
from tests.support.base import BaseLayout
from tests.support.registry import Registry
from tests.support.wheels import make_wheel, serve_index

TARGET = Target("3.12.7", "/usr/local/bin/python3.12", "glibc", "2.36")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A package index with a small client of Prefect's, and two packages for environments."""
    folder = tmp_path_factory.mktemp("index")
    make_wheel(folder, "prefect-client", version("prefect"), requires=["small"], requires_python=">=3.10")
    for name in ("small", "alpha", "beta", "pip"):
        make_wheel(folder, name, "1.0")
    with serve_index(folder) as served:
        yield served.url


@pytest.fixture
def team(fresh_registry: Registry, tmp_path: Path, index: str) -> Team:
    return Team.on(fresh_registry, tmp_path / "versions", index_url=index)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "train.py").write_text("print('trained')\n")
    return folder


def uploads(registry: Registry) -> int:
    """How many blobs were sent; one that was mounted is none."""
    return sum(line.startswith("PUT ") and "/blobs/uploads/" in line for line in registry.requests())


def delete(url: str) -> None:
    urllib.request.urlopen(urllib.request.Request(url, method="DELETE"), timeout=10).close()


class Jobs:
    """Makes job images for versions of `team`."""

    def __init__(self, team: Team, folder: Path) -> None:
        self.team, self.cache = team, folder / "cache"

    async def environment(self, base: BaseLayout, *packages: str, **fields: object) -> VersionRecord:
        given = {"name": "demo", "base_image": base.reference, "requirements": packages, **fields}
        ready = (await build(self.team, EnvironmentDefinition(**given), self.cache)).ready
        return await self.team.versions.get(ready.name, ready.version)

    async def image(self, record: VersionRecord, source: Path) -> JobImage:
        async with open_site(self.team, cache=self.cache) as site:
            return await ensure_job_image(site, record, await lock_of(site, record), source)

    @asynccontextmanager
    async def look(self, image: JobImage) -> AsyncIterator[tuple[ImageManifest, ImageConfig]]:
        async with open_site(self.team, cache=self.cache) as site:
            repository = site.store.repository("environments-jobs")
            digest = image.reference.rpartition("@")[2]
            await validate(repository, digest, site.scratch)
            manifest = ImageManifest.from_bytes((await repository.get_manifest(digest)).content)
            config = b"".join([chunk async for chunk in repository.read_blob(manifest.config)])
            yield manifest, ImageConfig.from_bytes(config)


@pytest.fixture
def jobs(team: Team, tmp_path: Path) -> Jobs:
    return Jobs(team, tmp_path)


async def test_a_second_script_sends_its_layer_and_a_config_and_nothing_else(
    jobs: Jobs, base_layout: BaseLayout, source: Path, fresh_registry: Registry
) -> None:
    """The environment's layers are mounted, the runtime's are made once; equal files are one image."""
    record = await jobs.environment(base_layout, "alpha")
    first = await jobs.image(record, source)
    assert not first.reused
    before = uploads(fresh_registry)
    again = await jobs.image(record, source)
    assert (again.reference, again.reused, again.bytes_sent) == (first.reference, True, 0)
    assert uploads(fresh_registry) == before
    (source / "train.py").write_text("print('another script')\n")
    second = await jobs.image(record, source)
    assert not second.reused and second.reference != first.reference
    assert uploads(fresh_registry) == before + 2
    async with jobs.look(first) as (old, _), jobs.look(second) as (new, _):
        assert old.layers[:-1] == new.layers[:-1] and old.layers[-1] != new.layers[-1]
        assert second.bytes_sent == new.layers[-1].size + new.config.size
        assert second.source_size == new.layers[-1].size


async def test_another_environment_shares_the_runtime(
    jobs: Jobs, base_layout: BaseLayout, source: Path, fresh_registry: Registry
) -> None:
    """A worker without a cache takes the runtime and the source out of the registry."""
    first = await jobs.image(await jobs.environment(base_layout, "alpha"), source)
    other = await jobs.environment(base_layout, "beta", name="other")
    before = uploads(fresh_registry)
    jobs.cache = jobs.cache.with_name("empty")
    second = await jobs.image(other, source)
    assert uploads(fresh_registry) == before + 1  # the config
    async with jobs.look(first) as (old, _), jobs.look(second) as (new, _):
        assert old.layers[-4:] == new.layers[-4:] or old.layers[-5:] == new.layers[-5:]


async def test_a_runtime_layer_that_the_registry_lost_is_made_again(
    jobs: Jobs, base_layout: BaseLayout, source: Path, fresh_registry: Registry
) -> None:
    record = await jobs.environment(base_layout, "alpha")
    async with jobs.look(await jobs.image(record, source)) as (manifest, _):
        lost = [layer.digest for layer in manifest.layers[-3:-1]]
    for digest in lost:
        delete(f"{fresh_registry.url}/v2/environments-jobs/blobs/{digest}")
    (source / "train.py").write_text("print('another script')\n")
    async with jobs.look(await jobs.image(record, source)) as (manifest, _):
        assert [layer.digest for layer in manifest.layers[-3:-1]] == lost


def test_the_flow_in_the_container_loads_nothing_that_the_runtime_lacks() -> None:
    """What resolves, builds, pushes and starts containers is not there."""
    absent = ["aiohttp", "azure", "deflate", "docker", "installer", "rattler", "tomli_w", "uv"]
    code = f"import sys, prefect_environments.flows.job; print([name for name in {absent} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]"), done.stdout


async def test_the_image_is_the_environments_with_a_folder_of_its_own_and_no_entrypoint(
    jobs: Jobs, base_layout: BaseLayout, source: Path
) -> None:
    record = await jobs.environment(base_layout, "alpha")
    image = await jobs.image(record, source)
    async with jobs.look(image) as (manifest, config):
        assert config.settings["WorkingDir"] == "/job"
        assert not {"Entrypoint", "Cmd", "Healthcheck"} & config.settings.keys()
        assert config.environment["PATH"].startswith("/opt/env/bin:")
        assert "/opt/runtime" not in json.dumps(config.settings)
        async with open_site(jobs.team, cache=jobs.cache) as site:
            environment = await site.repository("demo").get_manifest(record.digest)
        below = ImageManifest.from_bytes(environment.content).layers
        assert [one.digest for one in manifest.layers[: len(below)]] == [one.digest for one in below]


async def test_a_user_managed_image_hosts_jobs_on_the_python_that_it_has(
    jobs: Jobs, base_layout: BaseLayout, base_layout_without_python: BaseLayout, source: Path
) -> None:
    """One without Python is refused by its name, before anything is stored for it."""
    record = await jobs.environment(base_layout, user_managed=True, mirror=True)
    async with jobs.look(await jobs.image(record, source)) as (_, config):
        assert "/opt/env" not in json.dumps(config.settings)
    bare = await jobs.environment(base_layout_without_python, name="bare", user_managed=True, mirror=True)
    with pytest.raises(BaseImageError, match=r"environment bare version 1 has no Python 3 on its PATH.*compute_target"):
        await jobs.image(bare, source)


async def test_a_folder_of_images_is_refused_because_no_pool_pulls_from_it(
    base_layout: BaseLayout, source: Path, tmp_path: Path, index: str
) -> None:
    jobs = Jobs(Team.on(tmp_path / "images", tmp_path / "versions", index_url=index), tmp_path)
    with pytest.raises(DefinitionError, match="keeps them in a folder"):
        await jobs.image(await jobs.environment(base_layout, "alpha"), source)


async def test_an_index_without_prefects_client_is_named_in_the_error(
    jobs: Jobs, base_layout: BaseLayout, source: Path, tmp_path: Path
) -> None:
    record = await jobs.environment(base_layout, "alpha")
    (tmp_path / "empty-index").mkdir()
    with serve_index(tmp_path / "empty-index") as served:
        jobs.team = replace(jobs.team, index_url=served.url)
        with pytest.raises(ResolveError, match="prefect-client"):
            await jobs.image(record, source)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (replace(TARGET, python="3.9.2"), "has Python 3.9.2, and .* needs 3.11 or newer"),
        (replace(TARGET, python="", interpreter=""), "no Python 3"),
        (replace(TARGET, interpreter="/opt/runtime/bin/python"), "where the runtime of jobs will be"),
    ],
)
def test_what_cannot_host_the_runtime_is_refused_by_name(target: Target, said: str) -> None:
    with pytest.raises(BaseImageError, match=f"^the environment demo .*{said}"):
        runtime.check_host(target, "the environment demo")


def test_images_of_one_python_minor_and_libc_share_a_runtime() -> None:
    """Patch, interpreter and newer libc don't count; a libc that is too old for newer wheels does."""
    shared = runtime.baseline(TARGET)
    assert runtime.baseline(Target("3.12.1", "/opt/env/bin/python", "glibc", "2.41")) == shared
    assert shared.libc_version == "2.28" and shared.python == "3.12.0"
    for other in ("2.27", "2.17"):
        assert runtime.baseline(replace(TARGET, libc_version=other)).libc_version == "2.17"
    assert runtime.baseline(replace(TARGET, libc="musl", libc_version="1.2")).libc_version == "1.2"
    assert runtime.baseline(replace(TARGET, python="3.13.0")) != shared


def test_a_prefix_is_part_of_the_keys_of_layers() -> None:
    package = (LockedPackage.of_file("alpha-1.0-py3-none-any.whl", "a" * 64, 10),)
    given = recipe.layer_inputs(package, TARGET), recipe.skeleton_inputs(TARGET)
    other = recipe.layer_inputs(package, TARGET, "", "/opt/runtime"), recipe.skeleton_inputs(TARGET, "/opt/runtime")
    assert [inputs["prefix"] for inputs in (*given, *other)] == ["/opt/env"] * 2 + ["/opt/runtime"] * 2


def test_this_package_is_one_wheel_whatever_the_times_of_its_files(tmp_path: Path) -> None:
    """It is a whole package that Python imports, without names of requirements and entry points."""
    first, path = write_own_wheel(tmp_path)
    content = path.read_bytes()
    assert write_own_wheel(tmp_path)[0] == first and path.read_bytes() == content
    import zipfile

    names = zipfile.ZipFile(path).namelist()
    assert {"prefect_environments/__init__.py", "prefect_environments/flows/job.py"} <= set(names)
    assert "prefect_environments/core/jobs/inside/run.py" in names
    assert not [name for name in names if "__pycache__" in name or "entry_points" in name]


def entries(blob: io.BytesIO) -> dict[str, tarfile.TarInfo]:
    blob.seek(0)
    with tarfile.open(fileobj=blob, mode="r:gz") as archive:
        return {member.name: member for member in archive}


def test_five_thousand_files_are_a_layer_whose_bytes_their_times_do_not_change(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    for number in range(50):
        (folder / f"part{number}").mkdir(parents=True)
        for other in range(100):
            (folder / f"part{number}" / f"{other}.txt").write_text(f"{number} {other}\n" * 50)
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o700)
    (folder / "link").symlink_to("part0/0.txt")
    (folder / "large").write_bytes(os.urandom(3_000_000))
    first, second = io.BytesIO(), io.BytesIO()
    blob = write_source(folder, first)
    for path in folder.rglob("*"):
        os.utime(path, (time.time() + 5, time.time() + 5), follow_symlinks=False)
    assert write_source(folder, second) == blob
    assert first.getvalue() == second.getvalue()
    found = entries(first)
    assert sum(member.isreg() and member.name.endswith(".txt") for member in found.values()) == 5000
    assert found["job/run.sh"].mode == 0o777 and found["job/part7/7.txt"].mode == 0o666
    assert found["job"].mode == 0o777 and "job/.wh..wh..opq" in found
    assert found["job/link"].linkname == "part0/0.txt" and found["job/large"].size == 3_000_000
    assert {(member.mtime, member.uid, member.gid) for member in found.values()} == {(1, 0, 0)}


def test_files_that_look_like_secrets_are_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Examples of them, public keys and code about secrets are none."""
    secret = [".env", ".env.local", "keys/server.pem", "deep/id_ed25519", ".aws/credentials", ".netrc", "a.p12"]
    plain = [".env.example", "train.py", "id_ed25519.pub", "credentials.py", "environment.yml", "keys/readme.md"]
    assert secret_files([*secret, *plain]) == secret
    (tmp_path / ".env").write_text("TOKEN=1")
    with caplog.at_level(logging.WARNING):
        warn_of_secrets(tmp_path)
    assert "look like secrets" in caplog.text and ".env" in caplog.text


def test_a_pipe_in_the_source_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DefinitionError, match="job/pipe in the source is neither"):
        write_source(tmp_path, io.BytesIO())

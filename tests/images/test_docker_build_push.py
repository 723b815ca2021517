"""Images out of a Docker engine and into a registry, by our own client."""

from pathlib import Path

import pytest

from prefect_environments.core.build.docker import export
from prefect_environments.core.build.docker.build import Builder
from prefect_environments.core.build.docker.engine import LABEL
from prefect_environments.core.distribution.registry import Registry as Client
from prefect_environments.core.oci import descriptor as types
from prefect_environments.core.oci.validate import validate
from tests.images.docker_parts import BUILDERS, Bench
from tests.images.parts import read_image, repository_of, requests_of, tool, uploads
from tests.support.base import BaseLayout
from tests.support.engine import DockerEngine
from tests.support.registry import Registry
from tests.support.session import Session

both = pytest.mark.parametrize("builder", BUILDERS)


@pytest.fixture(autouse=True)
def _use_engine(docker_engine: DockerEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in docker_engine.environment.items():
        if value:
            monkeypatch.setenv(name, value)


@pytest.fixture
def bench(docker_engine: DockerEngine, open_registry: Registry, tmp_path: Path) -> Bench:
    return Bench(docker_engine, open_registry, tmp_path / "scratch")


@pytest.fixture(scope="session")
def tiny_base(test_session: Session, open_registry: Registry, base_layout_without_python: BaseLayout) -> str:
    """A base of one small layer with a shell, by tag."""
    target = open_registry.repository_url("docker/tiny:1")
    test_session.once("docker-tiny", lambda: {"name": base_layout_without_python.push(target)})
    return target


@both
async def test_a_pushed_image_runs_and_only_what_changed_is_sent_again(
    bench: Bench, tiny_base: str, builder: Builder, tmp_path: Path
) -> None:
    """Pulled by digest it runs; a second push sends no layer; one changed layer sends one."""
    path, registry = f"docker/push-{builder}", bench.registry
    steps = "RUN echo one > /one\nARG TEXT\nRUN echo $TEXT > /two\n"
    dockerfile = f"FROM {tiny_base}\n{steps}CMD read a < /one; read b < /two; echo $a $b\n"
    async with bench.built(dockerfile, builder, arguments={"TEXT": "first"}) as image:
        pushed, seen = await bench.push(image, path)
        assert seen.layers == [False, False, False]
        reference = registry.repository_url(f"{path}@{pushed.digest}")
        bench.engine.pull(reference)
        assert bench.engine.run(reference).split() == ["one", "first"]
        with requests_of(registry) as requests:
            again, seen = await bench.push(image, path)
        assert again == pushed
        assert seen.layers == [True, True, True]
        assert (seen.bytes, uploads(requests, path)) == (0, 0)
    async with bench.built(dockerfile, builder, arguments={"TEXT": "second"}) as image:
        with requests_of(registry) as requests:
            changed, seen = await bench.push(image, path)
    bench.engine.docker("rmi", "--force", reference)
    # the classic builder made a new layer of `RUN echo one`, too, with a new time in it
    sent = {"buildkit": [False], "classic": [False, False]}[builder]
    assert [reused for reused in seen.layers if not reused] == sent
    assert uploads(requests, path) == len(sent) + 1  # and the config
    async with repository_of(registry.repository_url(f"{path}@{changed.digest}")) as (repository, digest):
        await validate(repository, digest, tmp_path / "validate")


@both
async def test_a_pushed_image_is_a_plain_oci_image_without_a_trace_of_the_build(
    bench: Bench, tiny_base: str, builder: Builder, tmp_path: Path
) -> None:
    """OCI media types, the user's labels and settings, not our label; skopeo and umoci read it."""
    path = f"docker/plain-{builder}"
    dockerfile = f"FROM {tiny_base}\nRUN echo 1 > /file\nLABEL kept=yes\nENV KEPT=yes\nUSER 1234\n"
    async with bench.built(dockerfile, builder) as image:
        assert LABEL in bench.engine.docker("inspect", image.id)
        pushed, _ = await bench.push(image, path)
    reference = bench.registry.repository_url(f"{path}@{pushed.digest}")
    async with repository_of(reference) as (repository, digest):
        manifest, config = await read_image(repository, digest)
    assert pushed.media_type == types.IMAGE_MANIFEST
    assert manifest.config.media_type == types.IMAGE_CONFIG
    assert {layer.media_type for layer in manifest.layers} == {types.LAYER_GZIP}
    assert config.settings["Labels"] == {"kept": "yes"}
    assert (config.settings["User"], config.environment["KEPT"]) == ("1234", "yes")
    assert LABEL not in str(config.data)
    assert not {"container", "container_config", "docker_version"} & config.data.keys()
    tool("skopeo", "copy", "-q", "--src-tls-verify=false", f"docker://{reference}", f"oci:{tmp_path}/copy:image")
    tool("umoci", "unpack", "--rootless", "--image", f"{tmp_path}/copy:image", tmp_path / "bundle")
    assert (tmp_path / "bundle/rootfs/file").read_text() == "1\n"


async def test_layers_of_the_base_are_taken_over_as_they_are(bench: Bench, tiny_base: str) -> None:
    """What a Dockerfile starts from keeps its blobs: mounted from the base's repository, not compressed and sent."""
    path = "docker/on-known"
    async with Client(bench.registry.address) as client, repository_of(tiny_base) as (_, tag):
        base = client.repository("docker/tiny")
        manifest, config = await read_image(base, tag)
        known = export.known_layers(manifest, config, base)
        async with bench.built(f"FROM {tiny_base}\nRUN echo 1 > /file\n", "auto") as image:
            with requests_of(bench.registry) as requests:
                pushed, seen = await bench.push(image, path, known=known)
        assert seen.layers == [True] * len(manifest.layers) + [False]
        found, _ = await read_image(client.repository(path), pushed.digest)
    assert [layer.digest for layer in found.layers[:-1]] == [layer.digest for layer in manifest.layers]
    assert uploads(requests, path) == 2  # the new layer and the config


async def test_a_layer_that_the_registry_lost_is_sent_again(bench: Bench, tiny_base: str) -> None:
    """The memory of what was sent is no proof that it is there."""
    path = "docker/lost"
    async with bench.built(f"FROM {tiny_base}\nRUN echo 1 > /file\n", "auto") as image:
        pushed, _ = await bench.push(image, path)
        async with repository_of(bench.registry.repository_url(f"{path}@{pushed.digest}")) as (repository, digest):
            manifest, _ = await read_image(repository, digest)
        lost = manifest.layers[-1].digest.removeprefix("sha256:")
        repositories = bench.registry.folder / "docker/registry/v2/repositories"
        for name in (path, f"{path}-layers"):
            link = repositories / name / "_layers/sha256" / lost / "link"
            link.unlink()
        again, seen = await bench.push(image, path)
    assert again == pushed
    assert seen.layers.count(False) == 1

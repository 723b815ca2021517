"""What the tests of Docker builds share: builds that look the same to both builders, and what a build left behind."""

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from docker.errors import NotFound

from prefect_environments.core.build.catalog import Catalog
from prefect_environments.core.build.docker.build import Builder, build_image
from prefect_environments.core.build.docker.engine import Engine, EngineImage, remove_image
from prefect_environments.core.build.docker.export import KnownLayer, push_built
from prefect_environments.core.build.docker.inputs import BuildInputs
from prefect_environments.core.distribution.registry import Registry as Client
from prefect_environments.core.oci.descriptor import Descriptor
from prefect_environments.core.progress import Progress
from tests.support.engine import DockerEngine
from tests.support.registry import Registry

BUILDERS: tuple[Builder, ...] = ("buildkit", "classic")


@dataclass
class Seen(Progress):
    """Progress that remembers."""

    steps: list[str] = field(default_factory=list)
    layers: list[bool] = field(default_factory=list)
    """Whether each layer was reused."""
    bytes: int = 0

    def step(self, name: str) -> None:
        self.steps.append(name)

    def layer(self, title: str, size: int, reused: bool) -> None:
        self.layers.append(reused)

    def sent(self, size: int) -> None:
        self.bytes += size


@dataclass(frozen=True)
class Bench:
    """An engine, a registry and a scratch folder, with the ways to use them."""

    engine: DockerEngine
    registry: Registry
    scratch: Path
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    async def build(self, dockerfile: str, builder: Builder, **options: Any) -> EngineImage:
        """Build on the host's network, which the tests' engine needs."""
        fields = {name: options.pop(name) for name in ("context", "arguments", "target", "platform") if name in options}
        secrets: Mapping[str, str] = options.pop("secrets", {})
        inputs = BuildInputs(dockerfile, secrets={name: f"secret:{name}" for name in secrets}, **fields)
        return await build_image(
            inputs,
            secrets=secrets,
            logins=options.pop("logins", {}),
            scratch=self.scratch,
            builder=builder,
            **{"network": "host", **options},
        )

    @asynccontextmanager
    async def built(self, dockerfile: str, builder: Builder, **options: Any) -> AsyncIterator[EngineImage]:
        image = await self.build(dockerfile, builder, **options)
        try:
            yield image
        finally:
            await remove_image(image)

    async def push(
        self, image: EngineImage, path: str, *, known: Mapping[str, KnownLayer] | None = None
    ) -> tuple[Descriptor, Seen]:
        """Push as `path:latest`, as a worker that knows nothing but the registry."""
        seen = Seen()
        async with Client(self.registry.address) as client:
            pushed = await push_built(
                image,
                client.repository(path),
                "latest",
                self.scratch,
                catalog=Catalog(client.repository(f"{path}-layers")),
                known=known,
                progress=seen,
            )
        return pushed, seen

    def marked(self, base: str) -> str:
        """The first lines of a Dockerfile, which mark every image and container that the build makes."""
        return f"FROM {base}\nENV MARK={self.mark}\n"

    def left(self) -> dict[str, object]:
        """What marked builds left in the engine and on disk; nothing in it is as it should be."""
        with Engine(self.engine.host or "unix:///var/run/docker.sock").client() as api:
            images = [x["Id"] for x in api.images(all=True) if self._is_marked(api.inspect_image, x["Id"])]
            containers = [x["Id"] for x in api.containers(all=True) if self._is_marked(api.inspect_container, x["Id"])]
        found = {
            "images": images,
            "containers": containers,
            "files": [str(path) for path in self.scratch.rglob("*")],
            "processes": _processes(str(self.scratch)),
        }
        return {what: value for what, value in found.items() if value}

    def _is_marked(self, inspect: Callable[[str], Any], found: str) -> bool:
        with suppress(NotFound):  # another test's, gone by now
            return f"MARK={self.mark}" in (inspect(found)["Config"].get("Env") or [])
        return False


def _processes(word: str) -> list[str]:
    """The processes with `word` in their command line or variables."""
    return [path.parent.name for path in proc_files() if word.encode() in _read(path)]


def proc_files() -> list[Path]:
    """Command lines and variables of all processes but this one, as other users' programs could read them."""
    own = str(Path("/proc/self").resolve())
    found = [path for name in ("cmdline", "environ") for path in Path("/proc").glob(f"[0-9]*/{name}")]
    return [path for path in found if not str(path).startswith(f"{own}/")]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def secrets_in_processes(secret: str) -> list[str]:
    return [str(path) for path in proc_files() if secret.encode() in _read(path)]


async def until_said(caplog: pytest.LogCaptureFixture, text: str, work: "asyncio.Task[Any]") -> None:
    """Wait until a build printed a line; its failure is raised."""
    while text not in [record.getMessage() for record in caplog.records]:
        assert not work.done(), work.exception()
        await asyncio.sleep(0.05)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The lines of the builds' log."""
    return [r.getMessage() for r in caplog.records if r.name.endswith("docker.log") and r.levelno >= logging.INFO]

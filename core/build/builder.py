"""What builders of Dockerfiles have in common: inputs become an image in a repository, known by its digest."""

from collections.abc import Awaitable, Callable
from typing import Literal, Protocol

from prefect_environments.core.build.docker.inputs import BuildInputs
from prefect_environments.core.oci.descriptor import Descriptor

BuilderName = Literal["docker", "acr-tasks"]


class Builder(Protocol):
    """A Docker engine, or a service that builds elsewhere."""

    async def build(self, inputs: BuildInputs, tag: str, unmoved: Callable[[], Awaitable[None]]) -> Descriptor:
        """Build `inputs` and store the image under `tag` in the workspace's repository of builds; gives its manifest.

        `unmoved` is asked before the image gets its tag: it raises `BuildError` if what the build read has changed.
        Raises `SpecificationError` for inputs that this builder cannot build, `EngineUnavailable` where it is not
        there, `BuildError` with the failed step and its last lines, and the registry's errors. A cancelled build
        leaves nothing running.
        """

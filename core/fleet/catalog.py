"""The registry's memory of layers and bases, asked once for all environments of a fleet."""

from collections.abc import Iterator
from contextlib import contextmanager

from prefect_environments.core.build.catalog import Catalog
from prefect_environments.core.fleet.flights import Flights
from prefect_environments.core.lock.target import Target
from prefect_environments.core.oci.append import AddedLayer
from prefect_environments.core.oci.repository import Repository


class FleetCatalog(Catalog):
    """A `Catalog` for builds that run at the same time: of two that need the same new layer, or look into the same
    base, one does the work and the other waits for it. Each is done inside `turn()`."""

    def __init__(self, repository: Repository) -> None:
        super().__init__(repository)
        self._layers: Flights[AddedLayer] = Flights()
        self._bases: Flights[Target] = Flights()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """One build, or one resolution."""
        with self._layers.turn(), self._bases.turn():
            yield

    async def find_layer(self, key: str) -> AddedLayer | None:
        """A layer that any environment has, of this run or before it."""
        layer = await self._layers.find(key)
        if layer is None and (layer := await super().find_layer(key)) is not None:
            self._layers.land(key, layer)
        return layer

    async def keep_layer(self, key: str, layer: AddedLayer, source: str) -> None:
        await super().keep_layer(key, layer, source)
        self._layers.land(key, layer)

    async def find_base(self, digest: str) -> Target | None:
        target = await self._bases.find(digest)
        if target is None and (target := await super().find_base(digest)) is not None:
            self._bases.land(digest, target)
        return target

    async def keep_base(self, digest: str, target: Target) -> None:
        await super().keep_base(digest, target)
        self._bases.land(digest, target)

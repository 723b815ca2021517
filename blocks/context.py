"""What a workspace lends to the blocks in it: who signs in, and the Key Vaults that references may name."""

from abc import ABC
from dataclasses import dataclass, field
from typing import Self

from pydantic import PrivateAttr

from prefect_environments.blocks.base import EnvironmentsBlock
from prefect_environments.core.azure.credentials import Identity
from prefect_environments.core.azure.keyvault import VaultSettings


@dataclass(frozen=True, slots=True)
class Context:
    """What counts for blocks that name none of their own."""

    identity: Identity | None = None
    credentials: str = field(default="", compare=False)
    """The block that `identity` comes from, for messages."""
    vaults: tuple[VaultSettings, ...] = ()
    """The default one first."""
    allow_unknown: bool = False
    """Whether vaults that are not among them may be asked."""


class InWorkspace(EnvironmentsBlock, ABC):
    """A block that takes from its workspace what it does not name itself. It stores nothing of that."""

    _context: Context = PrivateAttr(default_factory=Context)

    def within(self, context: Context) -> Self:
        """This block with what a workspace lends; a copy, if it is in another workspace already."""
        if self._context == context:
            return self
        lent = self if self._context == Context() else self.model_copy()
        lent._context = context
        return lent

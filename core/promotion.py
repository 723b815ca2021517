"""What a promotion gives: the version in the target workspace, and what it took."""

from dataclasses import dataclass, field
from typing import Literal

from prefect_environments.core.ready import ReadyImage
from prefect_environments.core.version_record import VersionRecord

How = Literal["there", "mounted", "imported", "sent", "stays"]
"""How the image came: it was there, the registry had all of its layers, Azure copied it, layers went through this
machine; or it is somebody else's and stays where it is."""


@dataclass(slots=True)
class Promotion:
    """A promoted version, and what it took."""

    record: VersionRecord
    """The version in the target workspace."""
    source: VersionRecord
    how: How = "there"
    is_new: bool = False
    """Whether it was registered now; else the target had this version."""
    layers_new: int = 0
    layers_reused: int = 0
    """Layers that the target's registry had; they were not sent."""
    bytes_sent: int = 0
    attached: int = 0
    """How many artifacts are attached to the image: lock, SBOM, definitions, signatures."""
    label: str = ""
    notes: tuple[str, ...] = ()
    """What to know about it in the target, for readers."""
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def ready(self) -> ReadyImage:
        """The version's image for jobs."""
        known = {name: getattr(self.record, name) for name in ReadyImage.model_fields if hasattr(self.record, name)}
        counted = {name: getattr(self, name) for name in ("layers_new", "layers_reused", "bytes_sent", "seconds")}
        return ReadyImage(**known, **counted, reused=self.how in ("there", "stays"))

    def __str__(self) -> str:
        return f"promoted from {self.source.workspace}, {self.source.name} version {self.source.version}"

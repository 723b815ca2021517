"""An entry of an environment's history, as a block document that is written once."""

from typing import Any, ClassVar, Self

from pydantic import Field

from prefect_environments.blocks.base import DOCUMENTATION_URL, LOGO_URL, EnvironmentsBlock
from prefect_environments.core.history import Entry


class EnvironmentHistory(EnvironmentsBlock):
    """Something that happened to a registered environment: a label set, a version pruned, the name archived.

    Entries are written by tasks such as `set_label` and never changed; don't edit them by hand, as their digest is
    checked when they are read. One more document for each version says when it was last used.

    Example:
        Load a stored entry:
        ```python
        from prefect_environments.blocks import EnvironmentHistory

        entry = EnvironmentHistory.load("BLOCK_NAME")
        ```
    """

    _block_type_name: ClassVar[str] = "Environment History"
    _block_type_slug: ClassVar[str] = "environment-history"
    _documentation_url = DOCUMENTATION_URL
    _logo_url = LOGO_URL

    workspace: str = Field(default=..., description="The workspace that the environment is registered in.")
    name: str = Field(default=..., description="The environment's name.")
    kind: str = Field(default=..., description="What happened: labelled, pruned, archived and so on.")
    version: int = Field(default=0, description="The version that it is about, if it is about one.")
    label: str = Field(default="", description="The label that was set or removed.")
    created: str = Field(default="", description="When it happened, in UTC.")
    entry: dict[str, Any] = Field(default_factory=dict, description="The whole entry.")
    entry_digest: str = Field(default="", description="Digest of the entry, checked when it is read.")

    @classmethod
    def from_entry(cls, entry: Entry) -> Self:
        """The block that stores `entry`."""
        return cls(
            workspace=entry.workspace,
            name=entry.name,
            kind=entry.kind,
            version=entry.version,
            label=entry.label,
            created=entry.created,
            entry=entry.to_json(),
            entry_digest=entry.digest(),
        )

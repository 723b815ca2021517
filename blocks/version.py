"""A registered version of an environment, as a block document that is written once."""

from typing import Any, ClassVar, Self

from pydantic import Field

from prefect_environments.blocks.base import DOCUMENTATION_URL, LOGO_URL, EnvironmentsBlock
from prefect_environments.core.versions import VersionRecord, checked_record


class EnvironmentVersion(EnvironmentsBlock):
    """A registered version of an environment: its image by digest, its definition and where it came from.

    Versions are written by registering an environment and never changed; don't edit them by hand, as the record's
    digest is checked when it is read.

    Example:
        Load a stored version:
        ```python
        from prefect_environments.blocks import EnvironmentVersion

        version = EnvironmentVersion.load("BLOCK_NAME")
        ```
    """

    _block_type_name: ClassVar[str] = "Environment Version"
    _block_type_slug: ClassVar[str] = "environment-version"
    _documentation_url = DOCUMENTATION_URL
    _logo_url = LOGO_URL

    workspace: str = Field(default=..., description="The workspace that registered it.")
    name: str = Field(default=..., description="The environment's name.")
    version: int = Field(default=..., description="The version's number, from 1.")
    reference: str = Field(default=..., description="The image, as repository@digest.")
    description: str = Field(default="", description="What the environment is for.")
    created: str = Field(default="", description="When it was registered, in UTC.")
    schema_version: int = Field(default=1, description="The layout of the record.")
    record: dict[str, Any] = Field(default=..., description="The whole record of the version.")
    record_digest: str = Field(default=..., description="Digest of the record, checked when it is read.")

    @classmethod
    def from_record(cls, record: VersionRecord) -> Self:
        """The block that stores `record`."""
        return cls(
            workspace=record.workspace,
            name=record.name,
            version=record.version,
            reference=record.reference,
            description=record.description,
            created=record.created,
            schema_version=record.schema_version,
            record=record.to_json(),
            record_digest=record.record_digest(),
        )

    def to_record(self) -> VersionRecord:
        """The record, its digest checked. Raises `VersionError` if it was altered."""
        return checked_record(self.record, self.record_digest, f"version {self.version} of {self.name!r}")

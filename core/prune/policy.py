"""What may be pruned: the rules that an owner sets."""

from pydantic import BaseModel, ConfigDict, Field


class PrunePolicy(BaseModel):
    """A version goes when it is not among the newest, has no label, is old enough and was not used for long enough.

    What living versions of other environments extend stays in any case, and so does what flow runs and deployments
    name. Days are whole days in UTC.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    keep: int = Field(default=3, ge=1, description="Newest versions of each environment that stay.")
    keep_archived: int = Field(default=1, ge=0, description="The same for archived environments; 0 lets all go.")
    older_than_days: int = Field(default=90, ge=0, description="Days since its registration before a version may go.")
    unused_days: int = Field(
        default=30,
        ge=2,  # a job notes once a day that it uses its version
        description="Days without a build or job that used it before a version, a job image or a layer may go.",
    )
    names: tuple[str, ...] = Field(default=(), description="Environments to look at; empty: all.")
    leftovers: bool = Field(
        default=True, description="Also job images, package layers, Dockerfile images and locks that nothing needs."
    )

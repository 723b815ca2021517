"""The result of a build: an image that is there, pinned by digest, with its registered version."""

from pydantic import BaseModel, ConfigDict, Field


class ReadyImage(BaseModel):
    """An image to run jobs in. `reference` is `repository@sha256:…` and never moves."""

    model_config = ConfigDict(frozen=True)

    reference: str
    name: str
    version: int
    digest: str
    image_hash: str
    platform: str
    python_path: str
    reused: bool = Field(description="Nothing was built: the registry had the image.")
    layers_new: int = 0
    layers_reused: int = 0
    bytes_sent: int = Field(default=0, description="Bytes of blobs that went to the registry.")
    packages: int = 0
    size: int = Field(default=0, description="Bytes of the image as stored, base included.")
    seconds: dict[str, float] = Field(default_factory=dict, description="Seconds by step.")

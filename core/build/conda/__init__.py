"""conda packages become layers: scanned without trust, linked by rattler, written as a deterministic tar."""

from prefect_environments.core.build.conda.layer import CondaLayer, write_conda

__all__ = ["CondaLayer", "write_conda"]

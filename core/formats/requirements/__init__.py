"""pip requirements, read as pip reads them (pip's documentation, "Requirements File Format")."""

from prefect_environments.core.formats.requirements.model import Requirements
from prefect_environments.core.formats.requirements.reader import parse, read

__all__ = ["Requirements", "parse", "read"]

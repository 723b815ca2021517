"""Resolving conda packages with rattler, for an image and never for the machine that resolves."""

from prefect_environments.core.lock.conda.channels import check as check_channel
from prefect_environments.core.lock.conda.packages import pip_constraints, python_version
from prefect_environments.core.lock.conda.request import CondaRequest
from prefect_environments.core.lock.conda.resolver import CondaResolver
from prefect_environments.core.lock.conda.specs import (
    PlainPython,
    names_python,
    normalise_spec,
    plain_python,
    satisfies_python,
)

__all__ = [
    "CondaRequest",
    "CondaResolver",
    "PlainPython",
    "check_channel",
    "names_python",
    "normalise_spec",
    "pip_constraints",
    "plain_python",
    "python_version",
    "satisfies_python",
]

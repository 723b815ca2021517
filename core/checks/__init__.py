"""Checks of a definition that need no network: what Azure ML's service documents, and what differs here.

`check` looks at a definition, `check_environment` at a v1 `Environment` with the sections that a definition lacks.
"""

import copy
import re
from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

from prefect_environments.core.checks import docker, packages
from prefect_environments.core.checks.finding import Finding
from prefect_environments.core.checks.sections import Sections, check_sections
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import DefinitionError, NameNotAllowed, RequirementsError

if TYPE_CHECKING:
    from prefect_environments.core.environment import Environment

__all__ = ["Finding", "Sections", "check", "check_environment"]

_UNNAMED = ("name", "description", "tags", "pre", "mirror", "allow_literal_secrets")  # words of other messages too


def check(
    definition: EnvironmentDefinition | Mapping[str, Any],
    *,
    sections: Sections | None = None,
    today: date | None = None,
) -> tuple[Finding, ...]:
    """The findings about a definition, errors first. A mapping of fields is checked even where they make no definition.

    Local files are looked at, no network is. `today` (default: this day, UTC) decides what is out of support.
    """
    today = today or datetime.now(UTC).date()
    found = list[Finding]()
    try:
        made = definition if isinstance(definition, EnvironmentDefinition) else EnvironmentDefinition(**definition)
    except DefinitionError as refusal:
        made = None
        found.append(refused(refusal))
    found += check_sections(sections or Sections(), made)
    if made is not None:
        found += docker.check_images(made, today)
        found += docker.check_dockerfile(made)
        found += docker.check_credentials(made)
        found += packages.check_packages(made, today)
    return tuple(sorted(dict.fromkeys(found), key=lambda finding: finding.level))


def refused(refusal: DefinitionError) -> Finding:
    """What makes a definition impossible, as a finding."""
    message, _, advice = str(refusal).rpartition("; ")
    if isinstance(refusal, NameNotAllowed):
        field = "name"
    elif isinstance(refusal, RequirementsError):
        field = "requirements"
    else:
        field = _named_field(str(refusal))
    return Finding("error", field, message or advice, advice if message else "correct it")


def _named_field(text: str) -> str:
    """The field that a message names first, as `build_context` or as the build context."""
    places = {}
    for name in (name for name in EnvironmentDefinition.model_fields if name not in _UNNAMED):
        if found := re.search(rf"\b{name.rstrip('s').replace('_', '[_ ]')}", text):
            places[name] = (found.start(), -len(name))
    return min(places, key=lambda name: places[name], default="definition")


def check_environment(environment: "Environment", *, today: date | None = None) -> tuple[Finding, ...]:
    """The findings about a v1 `Environment`: those of its definition, if it makes one, and of its other sections."""
    sections = Sections.of(environment)
    if not (sections.has_docker and sections.has_python):
        return tuple(check_sections(sections, None))
    defined = copy.deepcopy(environment)
    defined.python.base_conda_environment = None  # told of as a section; the rest is worth checking all the same
    try:
        return check(defined.definition(), sections=sections, today=today)
    except DefinitionError as refusal:
        return tuple(dict.fromkeys([refused(refusal), *check_sections(sections, None)]))

"""Checks of what Azure ML's SDK v1 has and a definition has no field for."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from prefect_environments.core.checks.finding import Finding, error, warning
from prefect_environments.core.definition import EnvironmentDefinition

if TYPE_CHECKING:
    from prefect_environments.core.environment import Environment

_DEFAULTS: dict[str, Any] = {"shared_volumes": True, "shm_size": "2g"}
_DEPRECATED = {
    "enabled": "jobs choose where they run",
    "arguments": "give them to the job's work pool",
    "shared_volumes": "mount volumes in the job's work pool",
    "gpu_support": "GPUs are a setting of the job's work pool",
    "shm_size": "set the shared memory in the job's work pool",
}
_OTHERS = {
    "r": "build R into the base image, by a Dockerfile",
    "spark": "install pyspark as a package",
    "databricks": "remove it, or run the job on Databricks",
}
LOCATION_TYPES = ("git", "local", "storageaccount")


@dataclass(frozen=True, slots=True)
class Sections:
    """Parts of a v1 environment beside its definition."""

    docker: Mapping[str, Any] = field(default_factory=dict)
    """Deprecated attributes that are set: `enabled`, `arguments`, `shared_volumes`, `gpu_support`, `shm_size`."""
    has_docker: bool = True
    has_python: bool = True
    has_credentials: bool = False
    registry_identity: Any = None
    context_given: bool = False
    context_location: str = ""
    context_location_type: str = ""
    base_conda_environment: str = ""
    others: Mapping[str, Any] = field(default_factory=dict)
    """Whole sections: `r`, `spark`, `databricks`."""

    @classmethod
    def of(cls, environment: "Environment") -> "Sections":
        """Those of an `Environment`."""
        docker, python = environment.docker, environment.python
        context = getattr(docker, "build_context", None)
        registry = getattr(docker, "base_image_registry", None)
        return cls(
            docker={name: getattr(docker, name, None) for name in _DEPRECATED},
            has_docker=docker is not None,
            has_python=python is not None,
            has_credentials=bool(getattr(registry, "password", None)),
            registry_identity=getattr(registry, "extra", {}).get("registryIdentity"),
            context_given=context is not None,
            context_location=getattr(context, "location", None) or "",
            context_location_type=getattr(context, "location_type", None) or "",
            base_conda_environment=getattr(python, "base_conda_environment", None) or "",
            others={name: getattr(environment, name) for name in _OTHERS},
        )


def check_sections(sections: Sections, definition: EnvironmentDefinition | None) -> Iterator[Finding]:
    """`definition` is `None` where the environment cannot give one."""
    for name, there in (("docker", sections.has_docker), ("python", sections.has_python)):
        if not there:
            yield error(
                name, f"the {name} section is missing", f"assign a {name.capitalize()}Section, or leave it as it was"
            )
    for name, advice in _DEPRECATED.items():
        if sections.docker.get(name) not in (None, False, [], (), _DEFAULTS.get(name)) or (
            name == "shared_volumes" and sections.docker.get(name) is False
        ):
            yield warning(f"docker.{name}", f"docker.{name} is deprecated in Azure ML and ignored here", advice)
    if sections.registry_identity and sections.has_credentials:
        yield error(
            "docker.base_image_registry",
            "there are two sets of credentials: a user name and a registry identity",
            "keep one of them",
        )
    elif sections.registry_identity:
        yield warning(
            "docker.base_image_registry",
            "a registry identity has no meaning here",
            "give user name and password, as secret references",
        )
    yield from _context(sections)
    if sections.base_conda_environment:
        yield error(
            "python.base_conda_environment",
            "an environment that the image has is not changed in place, which would not be reproducible",
            "list all packages in conda_dependencies, or name its Python by interpreter_path in a user-managed image",
        )
    yield from _others(sections, definition)


def _context(sections: Sections) -> Iterator[Finding]:
    if sections.context_given and not sections.context_location:
        yield error("docker.build_context", "the build context has no location", "give its folder or git URL")
    kind = sections.context_location_type
    if kind and kind.lower() not in LOCATION_TYPES:
        yield error(
            "docker.build_context.location_type",
            f"the location type {kind!r:.80} is unknown",
            f"write one of {', '.join(LOCATION_TYPES)}",
        )


def _others(sections: Sections, definition: EnvironmentDefinition | None) -> Iterator[Finding]:
    for name, advice in _OTHERS.items():
        if not _used(sections.others.get(name)):
            continue
        beside = ", and Azure ML refuses it beside a build context" if definition and definition.build_context else ""
        yield warning(name, f"the {name} section is kept for saving and ignored here{beside}", advice)


def _used(section: Any) -> bool:
    """Whether a section says anything: SDK v1 writes empty ones into every file."""
    if isinstance(section, Mapping):
        return any(value for value in section.values() if not isinstance(value, bool))
    return bool(section)

"""From the mutable `Environment` to the frozen `EnvironmentDefinition`, and back."""

import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from prefect_environments.core.conda_dependencies import DEFAULT_CHANNELS, DEFAULT_NAME, CondaDependencies
from prefect_environments.core.definition import EnvironmentDefinition, check_base_image
from prefect_environments.core.errors import DefinitionError, NotSupportedYet, SpecificationError
from prefect_environments.core.formats import pip_section
from prefect_environments.core.formats.conda import CondaSpecification
from prefect_environments.core.formats.requirements import Requirements
from prefect_environments.core.secrets import SecretReference, SecretValue, looks_secret
from prefect_environments.core.sections import (
    GIT,
    LOCAL,
    ContainerRegistrySection,
    DockerBuildContext,
    DockerSection,
    PythonSection,
    check_flag,
    warn,
)

if TYPE_CHECKING:
    from prefect_environments.core.environment import Environment

logger = logging.getLogger(__name__)

_PIP_FIELDS = ("constraints", "extra_index_urls", "find_links", "no_index", "pre", "only_binary", "require_hashes")
_DOCKER_IGNORED = ("enabled", "arguments", "shared_volumes", "shm_size", "gpu_support")


def to_definition(environment: "Environment") -> EnvironmentDefinition:
    """A snapshot. Raises `DefinitionError` for what is wrong, such as a literal registry password."""
    for message in _ignored(environment):
        logger.warning("environment %s: %s", environment.name, message)
    python, docker = environment.python, environment.docker
    managed = not check_flag("python.user_managed_dependencies", python.user_managed_dependencies)
    conda = python.conda_dependencies if managed and python.conda_dependencies is not None else CondaDependencies()
    variables = stored_values(environment.environment_variables, "environment_variables")
    given: dict[str, Any] = {
        "name": environment.name,
        "description": as_stored(environment.description or ""),
        "tags": stored_values(environment.tags, "tags"),
        "environment_variables": _with_conda_variables(variables, conda),
        "allow_literal_secrets": environment.allow_literal_secrets,
        "user_managed": not managed,
        "interpreter_path": "" if managed or python.interpreter_path in (None, "python") else python.interpreter_path,
        "allow_source_builds": python.allow_source_builds,
        "pylock": python.pylock,
        "requires_python": python.requires_python,
        "extends": python.extends,
    }
    given |= {} if python.compile_bytecode is None else {"compile_bytecode": python.compile_bytecode}
    return EnvironmentDefinition(**given | _docker_fields(docker) | _python_fields(conda))


def fill(environment: "Environment", definition: EnvironmentDefinition) -> None:
    """Set everything that the definition says; `to_definition` gives an equal one back."""
    environment.description = definition.description
    environment.tags = dict(definition.tags)
    environment.environment_variables = dict(definition.environment_variables)
    environment.allow_literal_secrets = definition.allow_literal_secrets
    _fill_docker(environment.docker, definition)
    _fill_python(environment.python, definition)


def stored_values(value: object, what: str) -> dict[str, str]:
    """Text by name, secrets as their references; scripts set `None` for nothing. `DefinitionError` for the rest."""
    if value is not None and not isinstance(value, Mapping):
        raise DefinitionError(f"{what} is a dictionary of text by name, got {type(value).__name__}")
    return {name: as_stored(item) for name, item in (value or {}).items()}


def as_stored(value: object) -> str:
    """A value that came from a secret store as its reference; anything else as text."""
    if isinstance(value, SecretValue):
        return str(value.reference)
    if not isinstance(value, str):
        raise DefinitionError(
            f"variables, tags, arguments and credentials are text, got {type(value).__name__}; quote the value"
        )
    return value


def stored_password(value: object) -> str:
    """The reference to a registry's password; `DefinitionError` for a literal one, which would be stored."""
    stored = as_stored(value or "")
    if stored and not SecretReference.is_reference(stored):
        raise DefinitionError(
            "docker.base_image_registry.password is a literal value, which would be stored; use a reference "
            '("secret:NAME" for a Prefect Secret block), or a value from a key vault block'
        )
    return stored


def build_secrets(docker: DockerSection) -> dict[str, str]:
    """The references to a build's secrets by id; `DefinitionError` for a literal value, which would be stored."""
    found = stored_values(docker.build_secrets, "docker.build_secrets")
    for name, value in found.items():
        if not SecretReference.is_reference(value):
            raise DefinitionError(
                f"docker.build_secrets has a literal value for {name!r}, which would be stored in plain text; use a "
                "reference (secret:NAME), or a value from a key vault block"
            )
    return found


def build_arguments(docker: DockerSection) -> dict[str, str]:
    """A build's arguments; `DefinitionError` for what is or looks like a secret: they are stored."""
    found = stored_values(docker.build_arguments, "docker.build_arguments")
    for name, value in found.items():
        if SecretReference.is_reference(value) or looks_secret(name, value):
            raise DefinitionError(
                f"the build argument {name!r} is or looks like a secret; arguments are stored, in the image's history "
                "too. Use docker.build_secrets, and RUN --mount=type=secret in the Dockerfile"
            )
    return found


def _docker_fields(docker: DockerSection) -> dict[str, Any]:
    registry = docker.base_image_registry
    image = base_image(docker)
    fields: dict[str, Any] = {
        "base_image": image,
        "base_image_username": as_stored(registry.username or ""),
        "base_image_password": stored_password(registry.password),
        "platform": str(docker.platform),
        "dockerfile": _dockerfile(docker.base_dockerfile),
        "build_arguments": build_arguments(docker),
        "build_target": docker.build_target,
        "build_secrets": build_secrets(docker),
        "mirror": docker.mirror,
    }
    if docker.build_context is not None:
        fields |= _context_fields(docker.build_context)
    if registry.username and not image and (docker.base_dockerfile or docker.build_context is not None):
        fields["base_image_registry"] = _host(registry)
    return fields


def _context_fields(context: DockerBuildContext) -> dict[str, Any]:
    if context.location_type not in (GIT, LOCAL) or not context.location:
        raise DefinitionError(
            f"the build context is of the type {context.location_type!r} at {context.location!r:.200}; a context is "
            "DockerBuildContext.from_local_directory(ws, FOLDER) or .from_git(URL#COMMIT): download one that is "
            "elsewhere"
        )
    path = context.dockerfile_path
    return {"build_context": context.location, "dockerfile_path": "" if path == "Dockerfile" else path}


def _dockerfile(text: Any) -> Any:
    if not isinstance(text, str):
        return "" if text is None else text
    from prefect_environments.core.build.docker.dockerfile import is_dockerfile_text  # noqa: PLC0415  # only if needed

    if not is_dockerfile_text(text):
        raise SpecificationError(
            f"docker.base_dockerfile holds {text!r:.200}, which is no Dockerfile; was it the path of one? Set "
            "docker.base_dockerfile to a path that exists, or to the text"
        )
    return text


def base_image(docker: DockerSection) -> str:
    """The base image's full reference; a leading slash is joined to the registry's address, as in Azure ML."""
    image, address = docker.base_image, docker.base_image_registry.address
    for name, value in (("base_image", image), ("base_image_registry.address", address)):
        if not isinstance(value, str | None):
            raise DefinitionError(f"docker.{name} must be text, got {type(value).__name__}: is there a stray comma?")
    check_base_image(image or "", "docker.base_image")
    check_base_image(address or "", "docker.base_image_registry.address")
    if not address or not image:
        return image or ""
    host = _host(docker.base_image_registry)
    return image if image.startswith(f"{host}/") else f"{host}/{image.lstrip('/')}"


def _host(registry: ContainerRegistrySection) -> str:
    return (registry.address or "").removeprefix("https://").rstrip("/")


def _python_fields(conda: CondaDependencies) -> dict[str, Any]:
    found = conda.requirements()
    fields = {name: getattr(found, name) for name in _PIP_FIELDS}
    packages = conda.conda_packages
    return fields | {
        "requirements": found.packages,
        "index_url": found.index_url or "",
        "conda_channels": conda.conda_channels if packages else (),
        "conda_dependencies": packages,
    }


def _with_conda_variables(variables: dict[str, str], conda: CondaDependencies) -> dict[str, str]:
    for name, value in conda.variables.items():
        if variables.get(name, value) != value:
            warn(f"the variable {name} of environment_variables hides the one in conda_dependencies")
    return {**conda.variables, **variables}


def _ignored(environment: "Environment") -> Iterator[str]:
    """What is kept for saving, and has no effect on the image."""
    docker, python = environment.docker, environment.python
    kept = [name for name in _DOCKER_IGNORED if _counts(getattr(docker, f"_{name}"), name)]
    kept = [f"docker.{name}" for name in kept]
    kept += [name for name in ("spark", "databricks", "r") if _says_something(getattr(environment, name))]
    if kept:
        yield f"{', '.join(kept)} have no effect on an image, and are ignored"
    if python.base_conda_environment:
        raise NotSupportedYet(
            "python.base_conda_environment asks to install into an environment that the image has; name it by "
            "python.interpreter_path with python.user_managed_dependencies = True, or list its packages"
        )
    if python.user_managed_dependencies and python.conda_dependencies:
        yield "python.user_managed_dependencies is set: conda_dependencies are ignored, nothing is installed"
    if not python.user_managed_dependencies and python.interpreter_path not in (None, "", "python"):
        warn("python.interpreter_path counts for user-managed environments only, and is ignored")


def _counts(value: Any, name: str) -> bool:
    return value not in {"shared_volumes": (None, True), "shm_size": (None, "2g")}.get(name, (None, False, [], ()))


def _says_something(section: Any) -> bool:
    """Whether a section asks for anything; a switch (`precachePackages`) by itself does not."""
    values = section.values() if isinstance(section, dict) else [section]
    return any(value and value is not True for value in values)


def _fill_docker(docker: DockerSection, definition: EnvironmentDefinition) -> None:
    docker.base_image = definition.base_image or None
    if definition.dockerfile:
        docker.base_dockerfile = definition.dockerfile
    if definition.build_context:
        context = DockerBuildContext.of(definition.build_context)
        context.dockerfile_path = definition.dockerfile_path or "Dockerfile"
        context.location = definition.build_context
        docker.build_context = context
    docker.base_image_registry = ContainerRegistrySection(
        definition.base_image_registry or None,
        definition.base_image_username or None,
        definition.base_image_password or None,
    )
    docker.platform = definition.platform
    docker.build_arguments = dict(definition.build_arguments)
    docker.build_target = definition.build_target
    docker.build_secrets = dict(definition.build_secrets)
    docker.mirror = definition.mirror


def _fill_python(python: PythonSection, definition: EnvironmentDefinition) -> None:
    options = {name: getattr(definition, name) for name in _PIP_FIELDS}
    found = Requirements(definition.requirements, index_url=definition.index_url or None, **options)
    specs = definition.conda_dependencies
    channels = definition.conda_channels if specs else DEFAULT_CHANNELS
    specification = CondaSpecification(DEFAULT_NAME, channels, specs, pip_section.lines_of(found))
    python.conda_dependencies = CondaDependencies.from_specification(specification, found.constraints)
    python.user_managed_dependencies = definition.user_managed
    python.interpreter_path = definition.interpreter_path or None
    python.allow_source_builds = definition.allow_source_builds
    python.compile_bytecode = definition.compile_bytecode
    python.pylock = definition.pylock
    python.requires_python = definition.requires_python
    python.extends = definition.extends

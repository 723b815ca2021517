"""Reading the folder of Azure ML's SDK v1. What is odd in it is told, what is wrong is refused, nothing is guessed."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import yaml

from prefect_environments.core.conda_dependencies import CondaDependencies
from prefect_environments.core.errors import NameNotAllowed, SpecificationError
from prefect_environments.core.formats import conda, json_fields, pip_section
from prefect_environments.core.formats import requirements as requirements_format
from prefect_environments.core.formats.json_fields import Fields
from prefect_environments.core.names import check_name
from prefect_environments.core.redact import remember
from prefect_environments.core.secrets import SecretReference
from prefect_environments.core.sections import ContainerRegistrySection, DockerBuildContext, DockerPlatform

if TYPE_CHECKING:
    from prefect_environments.core.environment import Environment

    _E = TypeVar("_E", bound=Environment)

logger = logging.getLogger(__name__)

ENVIRONMENT = "azureml_environment.json"
CONDA = "conda_dependencies.yml"
DOCKERFILE = "BaseDockerfile"
CONSTRAINTS = "constraints.txt"
OURS = "prefectEnvironments"
"""The key of what SDK v1 does not know."""

_TOP = ("name", "environmentVariables", "python", "docker", "spark", "databricks", "r")
_KEPT = {"enabled": "enabled", "arguments": "arguments", "sharedVolumes": "shared_volumes", "shmSize": "shm_size"}
_DOCKER = ("baseImage", "baseDockerfile", "buildContext", "baseImageRegistry", "platform", *_KEPT)
_PYTHON = ("userManagedDependencies", "interpreterPath", "condaDependenciesFile", "baseCondaEnvironment")


def load(kind: "type[_E]", folder: Path) -> "_E":
    """See `azureml_v1.load`."""
    fields = json_fields.read(folder / ENVIRONMENT)
    environment = kind.unchecked(_name(fields, folder))
    environment.environment_variables = _variables(fields)
    environment.spark = fields.values.get("spark")
    environment.databricks = fields.values.get("databricks")
    environment.r = fields.values.get("r")
    environment.inferencing_stack_version = fields.text("inferencingStackVersion")
    environment.asset_id = fields.text("assetId")
    environment.extra = fields.others((*_TOP, "inferencingStackVersion", "assetId", OURS))
    _docker(environment, fields.section("docker"), folder)
    _python(environment, fields.section("python"), folder)
    _ours(environment, fields.section(OURS))
    return environment


def _name(fields: Fields, folder: Path) -> str:
    given = fields.text("name")
    if given is None:
        given = folder.absolute().name
        _tell(fields, "name", f"is missing; the environment is named after its folder, {given!r:.128}")
    try:
        return check_name(given)
    except NameNotAllowed as error:
        if not given.lower().startswith(("microsoft", "azureml")):
            raise fields.refused("name", f"is not allowed: {error}") from None
        _tell(fields, "name", f"is {given!r:.128}, which is reserved: give another by clone(NAME) before it is built")
        return check_name(f"x{given}")[1:]


def _variables(fields: Fields) -> dict[str, str]:
    given = fields.section("environmentVariables")
    found: dict[str, str] = {}
    for name, value in given.values.items():
        if value is None:
            _tell(given, name, "is null, and left out")
        elif isinstance(value, int) and not isinstance(value, bool):
            _tell(given, name, "is a number, and read as text")
            found[name] = str(value)
        elif isinstance(value, str):
            found[name] = value
        else:
            raise given.refused(name, "is no text; quote the value")
    return found


def _docker(environment: "Environment", fields: Fields, folder: Path) -> None:
    docker = environment.docker
    for key, name in _KEPT.items():
        object.__setattr__(docker, f"_{name}", fields.values.get(key))  # past the warnings of setting it by hand
    docker.extra = fields.others(_DOCKER)
    docker.base_image_registry = _registry(fields.section("baseImageRegistry"))
    platform = fields.section("platform")
    docker.platform = DockerPlatform(platform.text("os") or "Linux", platform.text("architecture") or "amd64")
    docker.platform.extra = platform.others(("os", "architecture"))
    bases = {
        "_base_image": _base_image(fields),
        "_base_dockerfile": _dockerfile(fields, folder),
        "_build_context": _context(fields.section("buildContext")),
    }
    given = {name: value for name, value in bases.items() if value is not None}
    if len(given) > 1:
        names = " and ".join(name.removeprefix("_") for name in given)
        raise fields.refused("baseImage", f"stands beside another base ({names}); an environment has one: remove one")
    for name, value in given.items():
        object.__setattr__(docker, name, value)


def _base_image(fields: Fields) -> str | None:
    value = fields.values.get("baseImage")
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        _tell(
            fields, "baseImage", f"is a list (a stray comma in the script that saved it?); its item is read: {value[0]}"
        )
        return value[0]
    return fields.text("baseImage") or None


def _dockerfile(fields: Fields, folder: Path) -> str | None:
    """The text in the file if the key is left out; a file beside a key that is null is stale."""
    path, inline = folder / DOCKERFILE, fields.text("baseDockerfile")
    if "baseDockerfile" in fields.values:
        if path.exists():
            _tell(fields, "baseDockerfile", f"says what counts; the file {path} beside it is stale, and not read")
        return inline
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else "") or "it is not UTF-8"
        raise SpecificationError(f"cannot read {path}: {reason}; correct the file") from None


def _context(fields: Fields) -> DockerBuildContext | None:
    if not fields.values:
        return None
    context = DockerBuildContext(
        fields.text("locationType"), fields.text("location"), fields.text("dockerfilePath") or "Dockerfile"
    )
    context.extra = fields.others(("locationType", "location", "dockerfilePath"))
    return context


def _registry(fields: Fields) -> ContainerRegistrySection:
    password = fields.text("password")
    registry = ContainerRegistrySection(fields.text("address"), fields.text("username"), password)
    registry.extra = {key: value for key, value in fields.others(("address", "username", "password")).items() if value}
    if password and not SecretReference.is_reference(password):
        remember(password)
        _tell(
            fields,
            "password",
            "is a literal password. Replace it in the file; it is neither saved nor registered from here: set "
            'docker.base_image_registry.password to a reference, such as "secret:NAME"',
        )
    return registry


def _python(environment: "Environment", fields: Fields, folder: Path) -> None:
    python = environment.python
    python.interpreter_path = fields.text("interpreterPath")
    python.base_conda_environment = fields.text("baseCondaEnvironment")
    python.extra = fields.others((*_PYTHON, "condaDependencies"))
    found = _conda(fields, folder)
    if found is not None:
        for warning in found.warnings:
            logger.warning(warning)
        python.conda_dependencies = found
    python.user_managed_dependencies = fields.flag("userManagedDependencies")
    if environment.docker.build_context is not None and not python.conda_dependencies:
        python.user_managed_dependencies = True  # SDK v1 writes false, and installs nothing


def _conda(fields: Fields, folder: Path) -> CondaDependencies | None:
    named = fields.text("condaDependenciesFile")
    inline = fields.section("condaDependencies").values
    path = folder / (named or CONDA)
    if inline and not named:
        origin = f"{fields.origin}: {fields.path}condaDependencies"
        return CondaDependencies.from_specification(
            conda.parse(yaml.safe_dump(inline, sort_keys=False), origin, folder=folder, check_files=False)
        )
    if not named and not path.exists():
        return None
    specification = conda.read(path, check_files=False)
    own = pip_section.read(f"-c {CONSTRAINTS}", CONDA, 1, folder, check_files=False)[0][0]
    if own not in specification.pip:
        return CondaDependencies.from_specification(specification)
    limits = requirements_format.read(folder / CONSTRAINTS).packages
    rest = tuple(line for line in specification.pip if line != own)
    return CondaDependencies.from_specification(replace(specification, pip=rest), limits)


def _ours(environment: "Environment", fields: Fields) -> None:
    docker, python = environment.docker, environment.python
    environment.description = fields.text("description") or ""
    environment.tags = fields.mapping("tags")
    environment.allow_literal_secrets = fields.flag("allowLiteralSecrets")
    docker.build_arguments = fields.mapping("buildArguments")
    docker.build_target = fields.text("buildTarget") or ""
    docker.build_secrets = fields.mapping("buildSecrets")
    docker.mirror = fields.flag("mirror")
    python.allow_source_builds = fields.flag("allowSourceBuilds")
    python.compile_bytecode = fields.flag("compileBytecode") if "compileBytecode" in fields.values else None
    python.pylock = fields.text("pylock") or ""
    python.requires_python = fields.text("requiresPython") or ""
    python.extends = fields.text("extends") or ""


def _tell(fields: Fields, key: str, message: str) -> None:
    logger.warning("%s: %s%s %s", fields.origin, fields.path, key, message)

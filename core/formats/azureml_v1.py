"""The folder of Azure ML's SDK v1: `azureml_environment.json`, `conda_dependencies.yml`, `BaseDockerfile`.

What the SDK knows and an image does not need (spark, databricks, r, keys that later versions of it added) is kept
untouched. What we know and the SDK does not stands under one key of its own, only if there is something.
"""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from prefect_environments.core import conversion, files
from prefect_environments.core.build.docker.checkout import check_no_credentials
from prefect_environments.core.conda_dependencies import CondaDependencies
from prefect_environments.core.errors import AlreadyExists, DefinitionError
from prefect_environments.core.formats import azureml_v1_load
from prefect_environments.core.formats.azureml_v1_load import CONDA, CONSTRAINTS, DOCKERFILE, ENVIRONMENT, OURS
from prefect_environments.core.secrets import SecretValue, looks_secret
from prefect_environments.core.sections import DockerSection, PythonSection, check_flag

if TYPE_CHECKING:
    from prefect_environments.core.environment import Environment

    _E = TypeVar("_E", bound=Environment)

_EMPTY_SPARK = {"repositories": [], "packages": [], "precachePackages": True}
_EMPTY_DATABRICKS: dict[str, list[str]] = {f"{kind}Libraries": [] for kind in ("maven", "pypi", "rcran", "jar", "egg")}
_OWNED = (CONDA, CONSTRAINTS, DOCKERFILE, ENVIRONMENT)
"""Files that belong to the format, the main one last: it names what the others hold."""


def load(kind: "type[_E]", folder: Path) -> "_E":
    """The environment in a folder, from SDK v1 of any year. Every key may be missing or null.

    Raises `SpecificationError`, naming file and key or line. A literal registry password stays in the process:
    `save` and `definition` refuse it.
    """
    return azureml_v1_load.load(kind, folder)


def save(environment: "Environment", folder: Path, *, overwrite: bool = False) -> None:
    """Write the folder. What was there of it is replaced only once everything new is on the disk, nothing stale is
    left, and files of somebody else stay.

    Raises `AlreadyExists` (a `FileExistsError`) where something is there and `overwrite` is not set, `DefinitionError`
    for a literal registry password or a variable that looks like a secret, `StorageError`.
    """
    contents = _contents(environment)
    if not overwrite and folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise AlreadyExists(f"{folder} is there already; pass overwrite=True, or choose another folder")
    with files.storage("saving an environment", folder):
        folder.mkdir(parents=True, exist_ok=True)
        with files.temporary_folder(folder) as scratch:
            for name, content in contents.items():
                (scratch / name).write_bytes(content)
                files.open_to_all(scratch / name)
            _replace(scratch, folder, contents)


def _replace(scratch: Path, folder: Path, contents: dict[str, bytes]) -> None:
    """Put new files in the place of all old ones; if that fails half-way, the old ones are put back."""
    kept = scratch / "old"
    kept.mkdir()
    old = [name for name in _OWNED if (folder / name).exists()]
    for name in old:
        shutil.copy2(folder / name, kept / name)
    try:
        for name in _OWNED:
            if name in contents:
                (scratch / name).replace(folder / name)
            else:
                (folder / name).unlink(missing_ok=True)
    except BaseException:
        for name in _OWNED:
            if name in old:
                (kept / name).replace(folder / name)
            else:
                (folder / name).unlink(missing_ok=True)
        raise


def _contents(environment: "Environment") -> dict[str, bytes]:
    python, docker = environment.python, environment.docker
    check_flag("python.user_managed_dependencies", python.user_managed_dependencies)
    conversion.base_image(docker)
    if python.conda_dependencies is not None:
        _check_variables(python.conda_dependencies.variables, environment.allow_literal_secrets)
    contents: dict[str, bytes] = {}
    conda, own_python = python.conda_dependencies, not python.user_managed_dependencies
    if conda is not None and (conda or (own_python and docker.build_context is None)):
        contents |= _conda_files(conda)
    if docker.base_dockerfile is not None:
        contents[DOCKERFILE] = str(docker.base_dockerfile).encode()
    text = json.dumps(_document(environment), indent=4, ensure_ascii=False, allow_nan=False)
    return contents | {ENVIRONMENT: f"{text}\n".encode()}


def _conda_files(conda: CondaDependencies) -> dict[str, bytes]:
    limits = conda.pip_constraints
    if not limits:
        return {CONDA: conda.serialize_to_string().encode()}
    text = "".join(f"{line}\n" for line in limits)
    return {CONDA: conda.with_constraints_file(CONSTRAINTS).encode(), CONSTRAINTS: text.encode()}


def _document(environment: "Environment") -> dict[str, Any]:
    variables = conversion.stored_values(environment.environment_variables, "environment_variables")
    _check_variables(variables, environment.allow_literal_secrets)
    known = {
        "name": environment.name,
        "version": str(environment.version) if environment.version else None,
        "environmentVariables": variables,
        "python": _python(environment.python),
        "docker": _docker(environment.docker),
        "spark": _EMPTY_SPARK if environment.spark is None else environment.spark,
        "databricks": _EMPTY_DATABRICKS if environment.databricks is None else environment.databricks,
        "r": environment.r,
        "inferencingStackVersion": environment.inferencing_stack_version,
        "assetId": environment.asset_id,
    }
    ours = _ours(environment)
    return known | environment.extra | ({OURS: ours} if ours else {})


def _check_variables(variables: dict[str, str], allowed: bool) -> None:
    for name, value in variables.items():
        if isinstance(value, SecretValue) or (looks_secret(name, value) and not allowed):
            raise DefinitionError(
                f"the environment variable {name} looks like a secret, and would be saved in plain text: give a "
                "reference (secret:NAME), or set allow_literal_secrets if it is none"
            )


def _python(python: PythonSection) -> dict[str, Any]:
    return {
        "userManagedDependencies": python.user_managed_dependencies,
        "interpreterPath": python.interpreter_path or "python",
        "condaDependenciesFile": None,
        "baseCondaEnvironment": python.base_conda_environment,
        **python.extra,
    }


def _docker(docker: DockerSection) -> dict[str, Any]:
    context, registry = docker.build_context, docker.base_image_registry
    if context is not None and "://" in (context.location or ""):
        check_no_credentials(str(context.location))
    given = context and {
        "locationType": context.location_type,
        "location": context.location,
        "dockerfilePath": context.dockerfile_path,
        **context.extra,
    }
    inline = {} if docker.base_dockerfile is not None else {"baseDockerfile": None}
    return {
        "enabled": bool(docker.enabled),
        "baseImage": docker.base_image,
        **inline,
        "buildContext": given,
        "sharedVolumes": docker.shared_volumes,
        "shmSize": docker.shm_size,
        "arguments": list(docker.arguments),
        "baseImageRegistry": {
            "address": registry.address,
            "username": conversion.as_stored(registry.username) if registry.username else None,
            "password": conversion.stored_password(registry.password) or None,
            "registryIdentity": None,
            **registry.extra,
        },
        "platform": {"os": docker.platform.os, "architecture": docker.platform.architecture, **docker.platform.extra},
        **docker.extra,
    }


def _ours(environment: "Environment") -> dict[str, Any]:
    """What SDK v1 has no key for, as far as it is set."""
    docker, python = environment.docker, environment.python
    everything = {
        "description": conversion.as_stored(environment.description or ""),
        "tags": conversion.stored_values(environment.tags, "tags"),
        "allowLiteralSecrets": environment.allow_literal_secrets,
        "buildArguments": conversion.build_arguments(docker),
        "buildTarget": docker.build_target,
        "buildSecrets": conversion.build_secrets(docker),
        "mirror": docker.mirror,
        "allowSourceBuilds": python.allow_source_builds,
        "compileBytecode": python.compile_bytecode,
        "pylock": python.pylock,
        "requiresPython": python.requires_python,
        "extends": python.extends,
    }
    return {key: value for key, value in everything.items() if value or (value is False and key == "compileBytecode")}

"""`ScriptRunConfig`: what a training job runs, where and with what. Frozen and flat, and good as a form in the UI.

Like an environment definition it holds secret references only: it is stored with the run that it is a parameter of.
"""

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import DefinitionError, ImageError
from prefect_environments.core.history import LATEST, check_label
from prefect_environments.core.jobs.distribution import Distribution
from prefect_environments.core.jobs.given import fields_of
from prefect_environments.core.names import check_name, version_number
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.secrets import SecretReference, looks_secret
from prefect_environments.core.secrets import check_variables as check_literals

LOCAL = ("local", "local:docker", "local:process")
"""Compute targets on this machine: Docker if there is an engine, else a process; or the one that is named."""

ALL_GPUS = -1

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)(i?b)?", re.IGNORECASE)
_MOST = 2**63 - 1
_UNITS = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}


class EnvironmentName(NamedTuple):
    """A registered environment as text: `name[:version[@digest]]`, or `name@label`; with a name alone the newest
    version is meant."""

    name: str
    version: int | None = None
    digest: str = ""
    label: str = ""

    @classmethod
    def parse(cls, text: str) -> "EnvironmentName":
        """Read `iris`, `iris:7`, `iris:7@sha256:…` or `iris@production`. Raises `DefinitionError` and
        `NameNotAllowed`."""
        place, at, digest = text.partition("@")
        name, colon, version = place.partition(":")
        if at and not colon:
            return cls(check_name(name), label=digest if digest.lower() == LATEST else check_label(digest))
        number = version_number(version) if colon else None
        if colon and number is None:
            raise DefinitionError(
                f"environment is {text!r:.200}; expected name, name:version or name@label, such as iris:7"
            )
        return cls(check_name(name), number, _digest(digest) if at else "")


class ScriptRunConfig(BaseModel):
    """A training job. Raises `DefinitionError` for what is wrong with it, before any work.

    Example:
        ```python
        config = ScriptRunConfig(source_directory="src", script="train.py", environment="iris:7")
        ```
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", title="Training job", hide_input_in_errors=True, allow_inf_nan=False
    )

    # The order is that of the form in the UI: what few need comes last.
    script: str = Field(default="", description="Python script to run, as its path in the source folder: train.py.")
    arguments: tuple[str, ...] = Field(default=(), description="Arguments of the script, one a row.")
    source_directory: str = Field(
        default=".",
        description="Folder with the script, on the machine that starts the job, or git URL with a commit (URL#COMMIT "
        "or URL#COMMIT:FOLDER).",
    )
    command: Annotated[str, Field(title="Text")] | Annotated[tuple[str, ...], Field(title="Words")] = Field(
        default="",
        description="Command in place of a script: text, which a shell runs, or a list of words, which a shell runs if "
        "there is an operator such as && among them.",
    )
    environment: Annotated[str, Field(title="Name")] | EnvironmentDefinition = Field(
        default="",
        description="Where no version is chosen above: a registered environment (name, or name:version), or a "
        "definition, which is built if its image is not there yet.",
    )
    compute_target: str = Field(
        default="local", description="local: this machine, in Docker if it has it. Else the name of a work pool."
    )
    environment_variables: dict[str, str] = Field(
        default_factory=dict,
        description='Set over those of the environment. A secret is given by reference: {"TOKEN": "secret:NAME"}.',
    )
    secrets: tuple[str, ...] = Field(
        default=(),
        description="References (secret:NAME, one a row) of the secrets that the script may ask for by "
        "Run.get_secret(name=NAME).",
    )
    outputs: str = Field(
        default="outputs", description="Folder, in the job's working directory, that is kept; empty: nothing is."
    )
    time_limit_seconds: float = Field(
        default=0, ge=0, title="Time Limit (Seconds)", description="Seconds after which it is stopped; 0: no limit."
    )
    cpus: float = Field(default=0, ge=0, title="CPUs", description="Processors at most, such as 1.5; 0: all.")
    memory: str = Field(default="", description="Memory at most, such as 4g; empty: all. A job that needs more fails.")
    gpus: int = Field(default=0, ge=ALL_GPUS, title="GPUs", description="GPUs to give to the job; -1: all.")
    shm_size: str = Field(default="2g", title="Shared Memory", description="Size of /dev/shm, which data loaders use.")
    distribution: Distribution | None = Field(default=None, description="Nodes and processes; none: a single process.")
    bootstrap: str = Field(
        default="", description="Shell script in the source folder to run before the command: bootstrap.sh."
    )
    run_on: Literal["node", "process"] = Field(
        default="node",
        title="Bootstrap On",
        description="In distributed jobs: bootstrap once on each node, or before each process.",
    )
    bootstrap_time_limit_seconds: float = Field(
        default=1800,
        gt=0,
        title="Bootstrap Time Limit (Seconds)",
        description="In distributed jobs: seconds that the bootstrap script may take.",
    )
    allow_literal_secrets: bool = Field(
        default=False, description="Accept environment variables that look like secrets. They are stored in plain text."
    )

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            found = [f"{'.'.join(map(str, item['loc'])) or 'config'}: {item['msg']}" for item in error.errors()]
            raise DefinitionError(f"the job's config is not valid: {'; '.join(found)}") from None

    @model_validator(mode="before")
    @classmethod
    def _as_given(cls, data: Any) -> Any:
        return fields_of(data) if isinstance(data, Mapping) else data

    @field_validator("environment", mode="before")
    @classmethod
    def _name(cls, value: Any) -> Any:
        """Take a registered version or a ready image by name, version and digest, and an `Environment`."""
        if isinstance(value, EnvironmentDefinition):
            return value
        if callable(getattr(value, "definition", None)):  # that of a version's record is data
            return value.definition()
        if hasattr(value, "to_record"):
            value = value.to_record()
        name, version, digest = (getattr(value, field, None) for field in ("name", "version", "digest"))
        return f"{name}:{version}@{digest}" if name and version and digest else value

    @field_validator("environment", mode="after")
    @classmethod
    def _known_form(cls, value: str | EnvironmentDefinition) -> str | EnvironmentDefinition:
        if isinstance(value, str) and value:
            EnvironmentName.parse(value)
        return value

    @field_validator("source_directory", mode="after")
    @classmethod
    def _source(cls, value: str) -> str:
        if _is_git(value):
            from prefect_environments.core.build.docker.checkout import GitContext  # noqa: PLC0415  # asyncio, for git

            GitContext.parse(value)
        elif not value.strip():
            raise DefinitionError("source_directory is empty; name the folder with the script, or . for this one")
        return value

    @field_validator("script", "bootstrap", "outputs", mode="after")
    @classmethod
    def _inside(cls, value: str) -> str:
        path = PurePosixPath(value)
        if value and (path.is_absolute() or ".." in path.parts or "\0" in value or path == PurePosixPath()):
            raise DefinitionError(f"{value!r:.200} must be a path inside the source folder, such as train.py")
        return str(path) if value else ""

    @field_validator("secrets", mode="after")
    @classmethod
    def _are_references(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        named = {SecretReference.parse(value, "secrets").name for value in values}
        if len(named) < len(set(values)):
            raise DefinitionError("two of the secrets have one name: the job could not tell them apart")
        return values

    @field_validator("memory", "shm_size", mode="after")
    @classmethod
    def _is_size(cls, value: str) -> str:
        bytes_of(value)
        return value.strip()

    @field_validator("compute_target", mode="after")
    @classmethod
    def _is_target(cls, value: str) -> str:
        if not value.strip() or (value.startswith("local:") and value not in LOCAL):
            raise DefinitionError(
                f"compute_target is {value!r:.100}; expected {', '.join(LOCAL)} or the name of a work pool"
            )
        return value.strip()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if bool(self.script) == bool(self.words):
            raise DefinitionError("a job runs either a script (with arguments) or a command: give one of the two")
        if self.arguments and not self.script:
            raise DefinitionError("arguments are for a script; write those of a command into the command")
        if any("\0" in word for word in (*self.words, *self.arguments)):
            raise DefinitionError("the command holds a NUL character, which no program can be given")
        for path in filter(None, (self.script, self.bootstrap)):
            if self.outputs and PurePosixPath(path).is_relative_to(self.outputs):
                raise DefinitionError(
                    f"{path!r:.200} is in the outputs folder {self.outputs!r:.200}, whose former content does not go "
                    "to the job; choose another folder for outputs"
                )
        check_variables(self.environment_variables, allow_literal=self.allow_literal_secrets)
        if not self.allow_literal_secrets and any(looks_secret("", word) for word in (*self.words, *self.arguments)):
            raise DefinitionError(
                "the command holds what looks like a secret, and would be stored in plain text: put it into "
                "environment_variables by reference (secret:NAME), or set allow_literal_secrets if it is none"
            )
        return self

    @property
    def words(self) -> tuple[str, ...]:
        """The command as it was given: one text, or words; empty for a script."""
        if isinstance(self.command, str):
            return (self.command,) if self.command.strip() else ()
        return self.command

    @property
    def is_local(self) -> bool:
        """Whether the job runs on this machine, not in a work pool."""
        return self.compute_target in LOCAL

    @property
    def is_git(self) -> bool:
        """Whether the source is a git repository's commit."""
        return _is_git(self.source_directory)

    def on(self, environment: object) -> "ScriptRunConfig":
        """The same job in another environment: a definition, a name, a ready image or a registered version."""
        return ScriptRunConfig(**{**dict(self), "environment": environment})


def _digest(text: str) -> str:
    try:
        return digests.check(text)
    except ImageError as error:
        raise DefinitionError(f"the environment's image: {error}") from None


def _is_git(source: str) -> bool:
    if not any(sign in source for sign in ("://", "::", "@")):
        return False
    from prefect_environments.core.build.docker.checkout import GitContext  # noqa: PLC0415  # asyncio, for git

    return GitContext.is_git(source)


def bytes_of(size: str) -> int:
    """`512m`, `4g` or `1.5 GiB` in bytes (1 k is 1024), 0 for the empty text. Raises `DefinitionError`."""
    if not size.strip():
        return 0
    found = _SIZE.fullmatch(size.strip())
    number = float(found[1]) * _UNITS[found[2].lower()] if found else 0
    if not 1 <= number <= _MOST:
        raise DefinitionError(f"{size!r:.50} is no size; expected a number with k, m, g or t, such as 512m or 4g")
    return int(number)


def check_variables(variables: Mapping[str, str], *, allow_literal: bool = False) -> None:
    """Raise `DefinitionError` for a name that is none, or for a literal value that looks like a secret."""
    for name, value in variables.items():
        if not _VARIABLE.fullmatch(name) or "\0" in value:
            raise DefinitionError(f"{name!r:.100} is no environment variable: its name is letters, digits and '_'")
    check_literals(variables, allow_literal=allow_literal)

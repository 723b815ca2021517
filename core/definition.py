"""`EnvironmentDefinition`: what is hashed, stored with a run, and shown as the form in the UI. Frozen and flat.

It holds secret references only, never values: everything in it may be read by everyone who sees the run.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Self

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from prefect_environments.core.errors import DefinitionError
from prefect_environments.core.formats import requirements as requirements_format
from prefect_environments.core.lock.target import Platform
from prefect_environments.core.names import check_name, version_number
from prefect_environments.core.registry_settings import check_address
from prefect_environments.core.secrets import SecretReference, SecretValue, check_variables, looks_secret

_DIGEST = re.compile(r"@sha(256|512):[0-9A-Za-z]*$")
_OPTIONS = (
    "constraints",
    "index_url",
    "extra_index_urls",
    "find_links",
    "no_index",
    "pre",
    "only_binary",
    "require_hashes",
)
_ONE_LINE = (
    *("base_image", "base_image_registry", "base_image_username", "base_image_password"),
    *("build_target", "interpreter_path", "extends", "requires_python", "index_url"),
)
"""Fields where blanks around the value are a slip of who pasted it."""
_TEXT_OR_LIST = WithJsonSchema(
    {
        "anyOf": [
            {"type": "string", "title": "Text"},
            {"type": "array", "items": {"type": "string"}, "title": "List"},
        ]
    }
)
"""In the form: text to paste into, or a list of rows."""
_BUILT = ("dockerfile", "build_context")
_NEEDS = {
    "dockerfile_path": ("build_context",),
    "base_image_registry": _BUILT,
    "build_arguments": _BUILT,
    "build_target": _BUILT,
    "build_secrets": _BUILT,
    "mirror": ("user_managed",),
    "interpreter_path": ("user_managed",),
}
_EXCLUDES = {
    "user_managed": ("requirements", "requires_python", "conda_dependencies", "pylock", "extends", "compile_bytecode"),
    "pylock": ("requirements", "constraints", "conda_dependencies", "extends"),
    "extends": ("base_image_username",),
}
_EXCLUDED = {
    "user_managed": "nothing is installed into a user-managed image",
    "pylock": "a lock is used as it is",
    "extends": "the base image is that of the environment that is extended, with its credentials",
}


class EnvironmentDefinition(BaseModel):
    """An ML environment as its user describes it. Raises `DefinitionError` for what is wrong with it."""

    model_config = ConfigDict(frozen=True, extra="forbid", title="Environment", hide_input_in_errors=True)

    # The order is that of the form in the UI: what few need comes last.
    name: str = Field(
        description="1 to 128 letters, digits, '.', '_' and '-', first a letter or digit. Versions count by name.",
    )
    base_image: str = Field(
        default="",
        description="Image to build on, such as python:3.12-slim; empty: the workspace's default base image.",
    )
    requirements: Annotated[tuple[str, ...], _TEXT_OR_LIST] = Field(
        default=(),
        json_schema_extra={"default": ""},  # opens the form's text, to paste into
        description="pip requirements, as in requirements.txt: pasted as they are, or as a list.",
    )
    conda_dependencies: tuple[str, ...] = Field(
        default=(), description="conda packages as match specs: python=3.11, conda-forge::libgomp, numpy>=2 …"
    )
    conda_channels: tuple[str, ...] = Field(
        default=(), description="conda channels, the first one first: names, URLs or folders."
    )
    environment_variables: dict[str, str] = Field(
        default_factory=dict,
        description="Set when a job runs, not baked into the image. A secret is given by reference: "
        '{"TOKEN": "secret:NAME"}.',
    )
    description: str = Field(default="", description="What the environment is for; shown with its versions.")
    tags: dict[str, str] = Field(
        default_factory=dict, description='Free labels, kept with the version: {"team": "vision"}.'
    )
    extends: str = Field(
        default="", description="A registered environment to add to, as name:version. None of its packages moves."
    )
    constraints: tuple[str, ...] = Field(
        default=(), description="Limits on versions of packages; they install nothing."
    )
    pylock: str = Field(
        default="",
        title="Lock (pylock.toml)",
        description="Text of a PEP 751 lock (pylock.toml), used as it is in place of requirements.",
    )
    requires_python: str = Field(
        default="", description="Python that the packages need, such as >=3.11; the image's is checked against it."
    )
    dockerfile: str = Field(default="", description="Text of a Dockerfile to build the base image with.")
    build_context: str = Field(
        default="", description="Folder, or git URL with a commit (URL#COMMIT:FOLDER), to build the base image from."
    )
    dockerfile_path: str = Field(
        default="", description="The Dockerfile's path in the build context; empty: Dockerfile."
    )
    build_arguments: dict[str, str] = Field(
        default_factory=dict, description="Build arguments (ARG) of the Dockerfile. They are stored; secrets are not."
    )
    build_target: str = Field(default="", description="Stage of the Dockerfile to build; empty: the last one.")
    build_secrets: dict[str, str] = Field(
        default_factory=dict,
        description="Secret references by the id that RUN --mount=type=secret,id=… names: {token: secret:NAME}.",
    )
    base_image_username: str = Field(default="", description="User name for the base image's registry, or secret:NAME.")
    base_image_password: str = Field(
        default="", description="Secret reference to the base image registry's password: secret:NAME."
    )
    base_image_registry: str = Field(
        default="", description="With a Dockerfile: the registry (host[:port]) that user name and password are for."
    )
    user_managed: bool = Field(
        default=False, description="Install nothing: jobs run with the Python that the image brings."
    )
    interpreter_path: str = Field(default="", description="Path of Python in a user-managed image; empty: python.")
    mirror: bool = Field(
        default=False, description="Copy a user-managed image into the workspace's registry, instead of pointing to it."
    )
    platform: str = Field(default="linux/amd64", description="linux/amd64 or linux/arm64.")
    index_url: str = Field(
        default="", title="Index URL", description="Package index to use instead of the default one."
    )
    extra_index_urls: tuple[str, ...] = Field(
        default=(), title="Extra Index URLs", description="More package indexes, asked before the main one."
    )
    find_links: tuple[str, ...] = Field(default=(), description="Folders or pages with links to wheels.")
    no_index: bool = Field(default=False, description="Use find_links only, no package index.")
    pre: bool = Field(default=False, title="Pre-releases", description="Allow pre-releases of all packages.")
    only_binary: tuple[str, ...] = Field(
        default=(), description="Packages (or :all:) whose source distributions are not looked at."
    )
    require_hashes: bool = Field(
        default=False,
        description="Every package must have a --hash; so it is where any requirement has one, as in pip.",
    )
    allow_source_builds: bool = Field(
        default=False,
        description="Build pure-Python packages without a wheel on the worker. This runs the package's own code there.",
    )
    compile_bytecode: bool = Field(
        default=False,
        description="Put compiled bytecode (.pyc) into the image: larger and slower to build, but the first import is "
        "fast. The machine that builds must have the image's version of Python.",
    )
    allow_literal_secrets: bool = Field(
        default=False, description="Accept environment variables that look like secrets. They are stored in plain text."
    )

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise DefinitionError(_explain(error)) from None

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, data: Any) -> Any:
        """Take an `Environment`, and read the requirement lines, options among them, into their fields."""
        if callable(getattr(data, "definition", None)):  # that of a version's record is data
            return data.definition().model_dump()
        if not isinstance(data, Mapping):
            return data
        # forms and YAML send null for what was cleared
        fields = {name: _as_stored(value) for name, value in data.items() if value is not None or name == "name"}
        if not isinstance(fields.get("requirements"), str | list | tuple | set):
            return fields
        found = requirements_format.parse(fields["requirements"], origin="requirements")
        fields["requirements"] = found.packages
        for option in _OPTIONS:
            if value := getattr(found, option):
                fields[option] = _merged(fields.get(option), value)
        return fields

    @field_validator(*_ONE_LINE, mode="after")
    @classmethod
    def _trimmed(cls, value: str) -> str:
        return value.strip()

    @field_validator("platform", mode="after")
    @classmethod
    def _usual_platform(cls, value: str) -> str:
        return value.strip() or str(Platform())

    @field_validator("extra_index_urls", "find_links", "only_binary", mode="after")
    @classmethod
    def _no_blank_rows(cls, lines: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(line.strip() for line in lines if line.strip())

    @field_validator("constraints", mode="after")
    @classmethod
    def _read_constraints(cls, lines: tuple[str, ...]) -> tuple[str, ...]:
        return requirements_format.parse(lines, origin="constraints").packages

    @field_validator("conda_channels", "conda_dependencies", mode="after")
    @classmethod
    def _one_space(cls, lines: tuple[str, ...]) -> tuple[str, ...]:
        found = tuple(spec for line in lines if (spec := " ".join(line.split())))
        if any("://" in spec for spec in found):  # addresses only: all else is checked by who resolves
            from prefect_environments.core.lock.conda.channels import check_secrets  # noqa: PLC0415

            for spec in found:
                check_secrets(spec, "a conda channel or dependency")
        return found

    @field_validator("extends", mode="after")
    @classmethod
    def _read_extends(cls, value: str) -> str:
        name, colon, version = value.rpartition(":")
        number = version_number(version) if colon else None
        if value and number is None:
            raise DefinitionError(f"extends is {value!r}; expected name:version, such as iris:7")
        return f"{check_name(name)}:{number}" if value else value

    @field_validator("only_binary", mode="after")
    @classmethod
    def _read_only_binary(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        options = [f"--only-binary={name}" for name in names]
        return requirements_format.parse(options, origin="only_binary").only_binary

    @field_validator("index_url", "extra_index_urls", "find_links", mode="after")
    @classmethod
    def _no_passwords(cls, value: Any) -> Any:
        urls = (value,) if isinstance(value, str) else value
        if any("${" in url for url in urls):
            raise DefinitionError("an index address with ${…} is not expanded here; write the address itself")
        if any(urls):
            requirements_format.parse([f"--extra-index-url {url}" for url in urls if url], origin="index")
        return value

    @field_validator("dockerfile", mode="after")
    @classmethod
    def _is_text(cls, value: str) -> str:
        if not value:
            return value
        from prefect_environments.core.build.docker.dockerfile import is_dockerfile_text  # noqa: PLC0415  # if needed

        if not is_dockerfile_text(value):
            raise DefinitionError(
                f"dockerfile is {value!r:.200}, which is no Dockerfile's text. A definition holds the text itself, as "
                "it may be built where the file is not; Environment.from_dockerfile reads a path"
            )
        return value

    @field_validator("build_context", mode="after")
    @classmethod
    def _read_git_context(cls, value: str) -> str:
        if "://" not in value and "@" not in value:
            return value
        from prefect_environments.core.build.docker.checkout import GitContext  # noqa: PLC0415  # if needed

        if GitContext.is_git(value):
            GitContext.parse(value)  # a branch would move, and credentials would be stored
        return value

    @field_validator("pylock", mode="after")
    @classmethod
    def _read_pylock(cls, text: str) -> str:
        if not text:
            return text
        from prefect_environments.core.formats import pylock  # noqa: PLC0415  # tomli_w and more, where there is one

        return pylock.normalise(text)

    @field_validator("requires_python", mode="after")
    @classmethod
    def _read_requires_python(cls, value: str) -> str:
        try:
            return str(SpecifierSet(value))
        except InvalidSpecifier:
            raise DefinitionError(
                f"requires_python is {value!r}; expected a version specifier such as >=3.11"
            ) from None

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_name(self.name)
        Platform.parse(self.platform)
        check_base_image(self.base_image)
        self._check_secrets()
        return self

    def _check_secrets(self) -> None:
        password = self.base_image_password
        if password and not SecretReference.is_reference(password):
            raise DefinitionError(
                "base_image_password must be a secret reference (secret:NAME or @Microsoft.KeyVault(…)), because a "
                "definition is stored in plain text; put the value into a Prefect Secret block or a vault"
            )
        for field, given in (("base_image_username", self.base_image_username), ("base_image_password", password)):
            if SecretReference.is_reference(given):
                SecretReference.parse(given, field)
        if bool(self.base_image_username) != bool(password):
            raise DefinitionError("base_image_username and base_image_password are given together or not at all")
        check_variables(self.environment_variables, allow_literal=self.allow_literal_secrets)

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        """One base, and only what counts for it: what would be silently left out is refused."""
        bases = [f for f in ("base_image", "dockerfile", "build_context", "extends") if getattr(self, f)]
        if len(bases) > 1:
            raise DefinitionError(f"{' and '.join(bases)} are given, but an environment has one base: keep one of them")
        for field, needs in _NEEDS.items():
            if getattr(self, field) and not any(getattr(self, need) for need in needs):
                raise DefinitionError(f"{field} counts only with {' or '.join(needs)}, which is not given")
        for field, others in _EXCLUDES.items():
            if getattr(self, field) and (also := [other for other in others if getattr(self, other)]):
                raise DefinitionError(f"{field} and {', '.join(also)} exclude each other: {_EXCLUDED[field]}")
        return self

    @model_validator(mode="after")
    def _check_build_inputs(self) -> Self:
        built = self.dockerfile or self.build_context
        if built and self.base_image_username and not self.base_image_registry:
            raise DefinitionError(
                "base_image_username is given for a Dockerfile, which may name images of several registries: say by "
                "base_image_registry (host[:port]) which one gets user name and password"
            )
        if self.base_image_registry:
            check_address(self.base_image_registry)
        for name, value in self.build_secrets.items():
            if not SecretReference.is_reference(value):
                raise DefinitionError(
                    f"build_secrets has a literal value for {name!r}, which would be stored in plain text: give a "
                    "reference (secret:NAME)"
                )
            SecretReference.parse(value)
        for name, value in self.build_arguments.items():
            if SecretReference.is_reference(value) or looks_secret(name, value):
                raise DefinitionError(
                    f"the build argument {name!r} looks like a secret; arguments are stored in the image's history. "
                    "Use build_secrets, and RUN --mount=type=secret in the Dockerfile"
                )
        return self

    @property
    def stays_where_it_is(self) -> bool:
        """Whether the image is somebody's own, neither made nor copied: its registry may not be the workspace's."""
        return self.user_managed and not (self.mirror or self.dockerfile or self.build_context)

    def base_version(self) -> tuple[str, int]:
        """Name and version that `extends` names."""
        name, _, version = self.extends.rpartition(":")
        return name, int(version)


def _as_stored(value: Any) -> Any:
    """`value` with the reference in place of every secret that came from a store, whatever the field: where no
    reference can be, the field's own check refuses it."""
    if isinstance(value, SecretValue):
        return str(value.reference)
    if isinstance(value, Mapping):
        return {name: _as_stored(item) for name, item in value.items()}
    return type(value)(map(_as_stored, value)) if type(value) in (list, tuple, set) else value


def _merged(given: Any, found: Any) -> Any:
    """An option of its field and of the lines: lists are joined, else the lines win; a wrong type is left as it is."""
    if not given or not isinstance(found, tuple):
        return found
    return tuple(dict.fromkeys((*given, *found))) if isinstance(given, list | tuple) else given


def _explain(error: ValidationError) -> str:
    """pydantic's findings without the values, which may be secrets."""
    found = [f"{'.'.join(map(str, item['loc'])) or 'definition'}: {item['msg']}" for item in error.errors()]
    return f"the environment definition is not valid: {'; '.join(found)}"


def check_base_image(reference: str, field: str = "base_image") -> str:
    """`reference` if it holds no credentials, else `DefinitionError`: definitions and blocks are stored in clear."""
    if not reference.startswith("oci:") and "@" in _DIGEST.sub("", reference):
        raise DefinitionError(
            f"{field} has an '@' that no digest (sha256:…) follows; it is not shown, because what stands before it may "
            "be a password: credentials go into base_image_username and base_image_password"
        )
    return reference

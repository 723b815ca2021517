"""Azure ML v2 environment YAML (CLI v2 environment schema): read as a definition, written from a registered version.

Keys: `$schema`, `name`, `version`, `description`, `tags`, `properties`, `image`, `conda_file`, `build`, `os_type`,
`inference_config`. What stands in the file stays as it was written: `version: 1.10` is "1.10".
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from prefect_environments.core.build.docker.checkout import GitContext
from prefect_environments.core.definition import EnvironmentDefinition, check_base_image
from prefect_environments.core.distribution.reference import Reference
from prefect_environments.core.errors import DefinitionError, SpecificationError
from prefect_environments.core.formats import conda as conda_format
from prefect_environments.core.formats import pip_section, yaml_text
from prefect_environments.core.formats.conda import CondaSpecification
from prefect_environments.core.formats.requirements import credentials
from prefect_environments.core.formats.yaml_text import Items, Table, Text, Value
from prefect_environments.core.names import check_name
from prefect_environments.core.ready import ReadyImage
from prefect_environments.core.registry_settings import LAYOUT_PREFIX
from prefect_environments.core.versions import VersionRecord

SCHEMA = "https://azuremlschemas.azureedge.net/latest/environment.schema.json"
KEYS = (
    "$schema",
    "name",
    "version",
    "description",
    "tags",
    "properties",
    "image",
    "conda_file",
    "build",
    "os_type",
    "inference_config",
)
_OF_THE_SERVICE = ("creation_context", "id", "latest_version", "resourceGroup")
"""What `az ml environment show` adds; it describes the copy in Azure, not the environment."""
_ROUTES = ("liveness_route", "readiness_route", "scoring_route")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_ELSEWHERE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:|git@", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class V2Environment:
    """A v2 YAML: the definition, and what a definition has no field for."""

    definition: EnvironmentDefinition
    version: str | None = None
    """As written. Azure ML's version of it; a workspace here counts its own."""
    properties: Mapping[str, str] = field(default_factory=dict)
    inference_config: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Route -> `path` (text) and `port` (a number), for online endpoints of Azure ML."""
    os_type: str = "linux"
    schema: str | None = None
    """The value of `$schema`."""
    warnings: tuple[str, ...] = ()
    """What was read but has no effect here, with file and line."""


def read(path: str | Path, *, name: str | None = None) -> V2Environment:
    """The environment in a YAML file. Paths in it count from the file's folder, as in Azure ML.

    `name` stands in for a file without one, and wins over one that it has. Raises `SpecificationError` with file,
    line and reason, `NameNotAllowed`, and `RequirementsError` for the pip section of a conda file.
    """
    path = Path(path)
    return _Reader(str(path), path.absolute().parent, name).environment(yaml_text.read(path))


def parse(
    text: str, *, origin: str = "environment", folder: Path | None = None, name: str | None = None
) -> V2Environment:
    """The same for text; without `folder`, files and folders that it names are refused."""
    return _Reader(origin, folder, name).environment(yaml_text.parse(text, origin))


def write(image: VersionRecord | ReadyImage, *, name: str | None = None, version: str | None = None) -> str:
    """A YAML that makes Azure ML v2 use a registered version's image, by digest, as it is.

    Deterministic, every value quoted, so that each reader of YAML sees text. The environment's variables have no
    place in v2's schema: a comment names them, since a job has to set them. `name` and `version` are for Azure ML, by
    default as registered. Raises `DefinitionError` for an image in a folder, `NameNotAllowed` for a reserved name.
    """
    if image.reference.startswith(LAYOUT_PREFIX) or not image.reference:
        raise DefinitionError(
            f"version {image.version} of {image.name!r} has no image in a registry, where Azure ML could pull it "
            "from: build it in a workspace with a registry, or push the image to one, and write that version"
        )
    record = image if isinstance(image, VersionRecord) else None
    document = {
        "$schema": SCHEMA,
        "name": check_name(name or image.name),
        "version": _checked_version(version or str(image.version)),
        "description": record.description if record else "",
        "tags": dict(sorted(record.tags.items())) if record else {},
        "image": str(Reference.parse(image.reference)),
        "os_type": "linux",
    }
    variables = sorted(record.environment_variables) if record else []
    comment = f"# Set in the job: {', '.join(variables)}\n" if variables else ""
    kept = {key: value for key, value in document.items() if value}
    return comment + yaml.safe_dump(kept, default_style='"', sort_keys=False, allow_unicode=True, width=10**6)


def _checked_version(version: str) -> str:
    if not _VERSION.fullmatch(version):
        raise SpecificationError(
            f"{version!r:.80} is no version: 1 to 255 letters, digits, '.', '_' and '-', first a letter or digit"
        )
    return version


class _Reader:
    """One file: its name for errors, the folder that paths count from, and the warnings so far."""

    def __init__(self, origin: str, folder: Path | None, name: str | None) -> None:
        self._origin, self._folder, self._name = origin, folder, name
        self._warnings: list[str] = []

    def environment(self, root: Value) -> V2Environment:
        table = self._root(root)
        self._check_os(table)
        fields = {
            "name": self._checked_name(table),
            "description": self._text(table, "description") or "",
            "tags": self._words(table, "tags"),
            **self._source(table),
        }
        try:
            definition = EnvironmentDefinition(**fields)
        except DefinitionError as error:
            raise type(error)(f"{self._origin}: {error}") from None
        return V2Environment(
            definition,
            version=self._version(table),
            properties=self._words(table, "properties"),
            inference_config=self._inference(table),
            schema=self._text(table, "$schema"),
            warnings=tuple(self._warnings),
        )

    def _root(self, root: Value) -> Table:
        if not isinstance(root, Table):
            came = "empty" if root is None else "a list" if isinstance(root, Items) else "text"
            raise SpecificationError(
                f"{self._origin}: an Azure ML environment is a mapping with image or build in it, and this is {came}"
            )
        if "dependencies" in root and "image" not in root and "build" not in root:
            raise self._refused(
                root.line_of("dependencies"),
                "this is a conda environment file; name it by conda_file in an Azure ML YAML beside an image, "
                "or read it with Environment.from_conda_specification",
            )
        for key in root:
            if key in _OF_THE_SERVICE:
                self._warnings.append(f"{self._origin}:{key.line}: {key} describes a copy in Azure ML; it is ignored")
            elif key not in KEYS:
                reason = yaml_text.unknown_key(key, KEYS, "an Azure ML environment")
                raise self._refused(key.line, reason)
        return root

    def _refused(self, line: int, reason: str) -> SpecificationError:
        return yaml_text.refused(self._origin, line, reason)

    def _scalar(self, table: Table, key: str) -> Text | None:
        """A value that is text, or `None` where the key is absent, null or blank."""
        value = table.get(key)
        if isinstance(value, Table | Items):
            raise self._refused(table.line_of(key), f"{key} is text, and this is a {_kind(value)}")
        return value if value is not None and value.strip() else None

    def _text(self, table: Table, key: str) -> str | None:
        value = self._scalar(table, key)
        return None if value is None else str(value)

    def _words(self, table: Table, key: str) -> dict[str, str]:
        value = table.get(key)
        if value is None:
            return {}
        if not isinstance(value, Table):
            raise self._refused(
                table.line_of(key), f"{key} is a mapping of names to texts, and this is a {_kind(value)}"
            )
        for name, item in value.items():
            if isinstance(item, Table | Items):
                raise self._refused(name.line, f"{name!r:.80} in {key} is text, and this is a {_kind(item)}")
        return {str(name): "" if item is None else str(item) for name, item in value.items()}

    def _checked_name(self, table: Table) -> str:
        if self._name is not None:
            return check_name(self._name)
        written = self._scalar(table, "name")
        if written is None:
            raise SpecificationError(f"{self._origin}: the environment has no name; add one, or give it by name=")
        try:
            return check_name(str(written))
        except DefinitionError as error:
            raise type(error)(f"{self._origin}:{written.line}: {error}") from None

    def _version(self, table: Table) -> str | None:
        written = self._scalar(table, "version")
        try:
            return None if written is None else _checked_version(str(written))
        except SpecificationError as error:
            raise self._refused(table.line_of("version"), str(error)) from None

    def _check_os(self, table: Table) -> None:
        os_type = self._scalar(table, "os_type")
        if os_type is None or os_type.lower() == "linux":
            return
        images = "Windows images are not built here" if os_type.lower() == "windows" else f"{os_type!r:.40} is unknown"
        raise self._refused(os_type.line, f"os_type is linux; {images}")

    def _inference(self, table: Table) -> dict[str, dict[str, Any]]:
        value = table.get("inference_config")
        if value is None:
            return {}
        if not isinstance(value, Table):
            raise self._refused(table.line_of("inference_config"), f"inference_config is a mapping of {_ROUTES}")
        return {str(key): self._route(key, route) for key, route in value.items()}

    def _route(self, key: Text, route: Value) -> dict[str, Any]:
        if key not in _ROUTES:
            raise self._refused(key.line, yaml_text.unknown_key(key, _ROUTES, "inference_config"))
        if not isinstance(route, Table) or {*map(str, route)} != {"path", "port"}:
            raise self._refused(key.line, f"{key} has a path and a port, and nothing else")
        path, port = route.get("path"), route.get("port")
        if not isinstance(path, Text) or not path.startswith("/"):
            raise self._refused(route.line_of("path"), f"the path of {key} starts with a slash")
        if not isinstance(port, Text) or not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            raise self._refused(route.line_of("port"), f"the port of {key} is a number from 1 to 65535")
        return {"path": str(path), "port": int(port)}

    def _source(self, table: Table) -> dict[str, Any]:
        """The definition's fields for image, conda file and build context."""
        image, build = self._scalar(table, "image"), table.get("build")
        if image is not None and build is not None:
            raise self._refused(table.line_of("build"), "image and build exclude each other; keep one of them")
        if build is not None:
            if table.get("conda_file") is not None:
                raise self._refused(
                    table.line_of("conda_file"),
                    "conda_file needs an image, and cannot stand beside build; install the packages in the Dockerfile, "
                    "or give the image that it builds as image",
                )
            return {**self._context(table, build), "user_managed": True}
        if image is None:
            raise self._refused(table.line, "an environment needs an image or a build")
        try:
            Reference.parse(check_base_image(str(image), "image"))
        except DefinitionError as error:
            raise self._refused(image.line, str(error)) from None
        conda = table.get("conda_file")
        return {"base_image": str(image), **({"user_managed": True} if conda is None else self._conda(table, conda))}

    def _context(self, table: Table, build: Value) -> dict[str, Any]:
        if not isinstance(build, Table):
            raise self._refused(table.line_of("build"), f"build is a mapping with a path, and this is a {_kind(build)}")
        for key in build:
            if key not in ("path", "dockerfile_path"):
                raise self._refused(key.line, yaml_text.unknown_key(key, ("path", "dockerfile_path"), "build"))
        path = self._scalar(build, "path")
        if path is None:
            raise self._refused(table.line_of("build"), "build needs a path: a folder, or a git URL with a commit")
        dockerfile = self._scalar(build, "dockerfile_path") or Text.of("Dockerfile", "str", path.line)
        fields = {"build_context": str(path)}
        if GitContext.is_git(path):
            try:
                GitContext.parse(path)
            except SpecificationError as error:
                raise self._refused(path.line, str(error)) from None
        else:
            fields["build_context"] = str(self._folder_of_context(path, dockerfile))
        return fields | ({"dockerfile_path": str(dockerfile)} if dockerfile != "Dockerfile" else {})

    def _folder_of_context(self, path: Text, dockerfile: Text) -> Path:
        folder = self._path(path, "a build context is a folder, or a git URL with a commit (URL#COMMIT:FOLDER)")
        if not folder.is_dir():
            raise self._refused(
                path.line, f"there is no folder {str(path)!r:.200} beside this file; correct build.path"
            )
        inside = (folder / dockerfile).resolve()
        if not inside.is_relative_to(folder.resolve()):
            raise self._refused(dockerfile.line, f"the Dockerfile {str(dockerfile)!r:.200} is outside of build.path")
        if not inside.is_file():
            raise self._refused(
                dockerfile.line,
                f"there is no Dockerfile {str(dockerfile)!r:.200} in {str(path)!r:.200}; correct the path",
            )
        return folder

    def _path(self, written: Text, advice: str) -> Path:
        """A path that the file names, absolute."""
        if _ELSEWHERE.match(written):
            raise self._refused(written.line, f"{credentials.mask(written)!r} is not a local path: {advice}")
        if "\0" in written or written[0] == "~":
            raise self._refused(
                written.line, f"{str(written)!r:.200} is no usable path; write it relative to this file"
            )
        if self._folder is None:
            raise self._refused(written.line, "it names a path, and text without a file has no folder to look in")
        return Path((self._folder / written).resolve())

    def _conda(self, table: Table, conda: Value) -> dict[str, Any]:
        line = table.line_of("conda_file")
        if isinstance(conda, Items):
            raise self._refused(line, "conda_file is the path of a conda file, or its content as a mapping")
        if isinstance(conda, Table):
            origin = f"{self._origin} (conda_file)"
            found = conda_format.parse(conda, origin, folder=self._folder)
        else:
            path = self._path(conda, "download the conda file, and name the copy") if conda else None
            if path is None or not path.is_file():
                raise self._refused(
                    line, f"there is no conda file {str(conda or '')!r:.200} beside this file; correct the path"
                )
            origin, found = str(path), conda_format.read(path)
        self._warnings += found.warnings
        return _fields(found, origin)


def _fields(found: CondaSpecification, origin: str) -> dict[str, Any]:
    """A definition's fields for a conda file's content; its name and prefix have no meaning in an image."""
    pip = pip_section.expand(found.pip, f"{origin} (pip)")
    fields = {
        "conda_channels": found.channels,
        "conda_dependencies": found.dependencies,
        "environment_variables": dict(found.variables),
        "requirements": pip.packages,
        "constraints": pip.constraints,
        "index_url": pip.index_url,
        "extra_index_urls": pip.extra_index_urls,
        "find_links": pip.find_links,
        "no_index": pip.no_index,
        "pre": pip.pre,
        "only_binary": pip.only_binary,
        "require_hashes": pip.require_hashes,
    }
    return {name: value for name, value in fields.items() if value}


def _kind(value: Value) -> str:
    return "mapping" if isinstance(value, Table) else "list" if isinstance(value, Items) else "text"

"""Files and folders on a command line as definitions."""

from collections.abc import Sequence
from pathlib import Path

from prefect_environments.cli.command import existing
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import DefinitionError, SpecificationError
from prefect_environments.core.fleet import specifications as formats
from prefect_environments.core.fleet.specifications import Specifications, read_folder
from prefect_environments.core.formats.azureml_v1_load import ENVIRONMENT

_MAKES_ONE = (ENVIRONMENT, "Dockerfile", "pyproject.toml")
"""Files that make a folder one environment: saved by Azure ML's SDK v1, a build context, a project."""


def read(paths: Sequence[str], *, name: str = "", base_image: str = "") -> Specifications:
    """The environments of all paths, in their order. What cannot be read in a folder of many is a failure beside them.

    `name` is for a single one; `base_image` is for those that lie on an image and name none. Raises what the formats
    raise, naming file and line, and `DefinitionError`.
    """
    found = [_found(existing(path), name) for path in paths]
    definitions = [definition for one in found for definition in one.definitions]
    unreadable = tuple(failure for one in found for failure in one.unreadable)
    if name and len(definitions) + len(unreadable) != 1:
        raise DefinitionError(f"--name {name} is for one environment, and {len(definitions)} are given; leave it out")
    if base_image:
        definitions = [_on(definition, base_image) for definition in definitions]
    return Specifications(tuple(definitions), unreadable)


def _found(path: Path, name: str) -> Specifications:
    try:
        return _read(path, name)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise SpecificationError(f"cannot read {path}: {reason}; correct the path or its permissions") from None


def _read(path: Path, name: str) -> Specifications:
    if path.is_dir() and not any((path / one).is_file() for one in _MAKES_ONE):
        found = read_folder(path)
        if name and len(found.definitions) == 1:
            return Specifications((_renamed(found.definitions[0], name),), found.unreadable)
        return found
    definition = _one_of_folder(path) if path.is_dir() else _one_of_file(path, name)
    return Specifications((_renamed(definition, name),), ())


def _one_of_folder(path: Path) -> EnvironmentDefinition:
    found = formats.in_folder(path.absolute())
    if found is None:
        raise SpecificationError(f"the folder {path} cannot be read; check its permissions")
    place, name, kind = found
    return kind(place, name)


def _one_of_file(path: Path, name: str) -> EnvironmentDefinition:
    if path.name == ENVIRONMENT:
        return _one_of_folder(path.absolute().parent)
    kind = formats.kind_of(path)
    if kind is None:
        raise SpecificationError(
            f"{path} has no name by which its format is known: requirements are *.txt, conda and Azure ML files *.yml "
            "or *.yaml, locks pylock.toml, projects pyproject.toml, Dockerfiles Dockerfile or *.dockerfile"
        )
    stem = formats.stem_of(path)
    return kind(path, name or (path.absolute().parent.name if stem.lower() in formats.COMMON else stem))


def _renamed(definition: EnvironmentDefinition, name: str) -> EnvironmentDefinition:
    return EnvironmentDefinition(**{**definition.model_dump(), "name": name}) if name else definition


def _on(definition: EnvironmentDefinition, base_image: str) -> EnvironmentDefinition:
    """With a base image, where one can be chosen."""
    made = definition.dockerfile or definition.build_context or definition.extends
    if definition.base_image or made:
        return definition
    return EnvironmentDefinition(**{**definition.model_dump(), "base_image": base_image})

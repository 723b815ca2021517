"""Checks of what an image is made from: base image, Dockerfile, build context, and its registry's credentials."""

import re
from collections.abc import Iterator
from datetime import date
from pathlib import Path

from prefect_environments.core.build.docker.checkout import GitContext
from prefect_environments.core.checks.finding import Finding, error, only_here, warning
from prefect_environments.core.checks.support import UBUNTU_END_OF_SUPPORT
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.distribution.reference import Reference
from prefect_environments.core.errors import DefinitionError, SpecificationError
from prefect_environments.core.registry_settings import LAYOUT_PREFIX

DOCKERFILE_LIMIT = 1024 * 1024
"""Bytes; Azure ML, "How to manage environments"."""
DOCKERFILE_LONG = 100 * 1024
"""Bytes; Azure ML, "Troubleshooting environment issues", which contradicts the other page."""

# Azure ML, "Troubleshooting environment issues", "Base image is deprecated": what its list of names has in common.
_DEPRECATED = re.compile(
    r"azureml/(?:base(?:-gpu|-lite)?|o16n-base/.+|(?:intelmpi|openmpi)[0-9.]+(?:-cuda[0-9.]+-cudnn[0-9]+)?-ubuntu1[68]\.04)"
)
_UBUNTU = re.compile(r"azureml/.*-ubuntu(?P<release>[0-9]{2}\.[0-9]{2})")
_AZUREML = re.compile(r"azureml:(?P<rest>.+)", re.IGNORECASE)


def check_images(definition: EnvironmentDefinition, today: date) -> Iterator[Finding]:
    """Where the image starts from, and whether that is there to stay."""
    if not (definition.base_image or definition.dockerfile or definition.build_context or definition.extends):
        yield only_here(
            "base_image",
            "no base image, Dockerfile or build context is given, so the workspace's default base image is taken",
            "name a base image, if the environment shall not depend on the workspace",
        )
    yield from _image("base_image", definition.base_image, today)
    field = "dockerfile" if definition.dockerfile else "build_context"
    try:
        images = _images_of(definition)
    except DefinitionError as refusal:
        yield error(field, str(refusal), "correct the Dockerfile")
        return
    for image in images:
        yield from _image(field, image, today)


def _image(field: str, image: str, today: date) -> Iterator[Finding]:
    if not image or image.startswith(LAYOUT_PREFIX):
        return
    if found := _AZUREML.fullmatch(image):
        yield error(
            field,
            f"{image!r:.200} names an environment of Azure ML, not an image"
            + (", and the newest version is NAME@latest there, not NAME:latest" if ":latest" in found["rest"] else ""),
            "name the image, or extend an environment that is registered here",
        )
        return
    try:
        reference = Reference.parse(image)
    except DefinitionError as refusal:
        yield error(field, str(refusal), "correct the image's name")
        return
    if reference.tag is None and reference.digest is None:
        yield warning(
            field,
            f"the image {image!r:.200} has neither tag nor digest, so that it is another one after each release of it",
            "add a version's tag, or a digest",
        )
    if _DEPRECATED.fullmatch(reference.path):
        yield warning(field, f"the image {image!r:.200} is deprecated and gets no updates", "take a newer base image")
    elif (ubuntu := _UBUNTU.match(reference.path)) and today > UBUNTU_END_OF_SUPPORT.get(ubuntu["release"], today):
        release = ubuntu["release"]
        yield warning(
            field,
            f"the image {image!r:.200} has Ubuntu {release}, whose support ended on {UBUNTU_END_OF_SUPPORT[release]}",
            "take one with a newer Ubuntu",
        )


def _images_of(definition: EnvironmentDefinition) -> tuple[str, ...]:
    """The images that the Dockerfile starts from. Raises `SpecificationError` for what is no Dockerfile."""
    from prefect_environments.core.build.docker.dockerfile import from_images, read_dockerfile  # noqa: PLC0415

    text = definition.dockerfile
    if not text and definition.build_context and _context_dockerfile(definition).is_file():
        text = read_dockerfile(_context_dockerfile(definition))
    if not text:
        return ()
    return from_images(text, definition.build_arguments, definition.build_target)


def check_dockerfile(definition: EnvironmentDefinition) -> Iterator[Finding]:
    """Size of the Dockerfile, and whether the context is where the definition says and has one."""
    if definition.dockerfile:
        yield from _size("dockerfile", len(definition.dockerfile.encode()))
    context = definition.build_context
    if not context:
        return
    if GitContext.is_git(context):
        yield from _git(context)
    elif not Path(context).is_dir():
        yield error("build_context", f"there is no folder {context!r:.300}", "correct its path")
    elif not _context_dockerfile(definition).is_file():
        name = definition.dockerfile_path or "Dockerfile"
        yield error(
            "dockerfile_path" if definition.dockerfile_path else "build_context",
            f"there is no file {name!r:.200} in the build context {context!r:.300}",
            "add the Dockerfile, or give its path in the context as dockerfile_path",
        )
    else:
        yield from _size("build_context", _context_dockerfile(definition).stat().st_size)
    also = [
        name for name in ("environment_variables", "conda_dependencies", "requirements") if getattr(definition, name)
    ]
    for name in also:
        yield only_here(name, f"{name} are given beside a build context", "install in the Dockerfile, set in the job")


def _context_dockerfile(definition: EnvironmentDefinition) -> Path:
    return Path(definition.build_context, definition.dockerfile_path or "Dockerfile")


def _size(field: str, size: int) -> Iterator[Finding]:
    advice = "move files into a build context, and long commands into scripts there"
    if size > DOCKERFILE_LIMIT:
        yield error(field, f"the Dockerfile has {size:,} bytes, more than {DOCKERFILE_LIMIT:,}", advice)
    elif size > DOCKERFILE_LONG:
        yield only_here(field, f"the Dockerfile has {size:,} bytes, more than {DOCKERFILE_LONG:,}", advice)


def _git(context: str) -> Iterator[Finding]:
    try:
        GitContext.parse(context)
    except SpecificationError as refusal:
        yield error("build_context", str(refusal), "download what is not in git into a folder")
    else:
        yield only_here("build_context", "the build context is in git", "for Azure ML, check it out into a folder")


def check_credentials(definition: EnvironmentDefinition) -> Iterator[Finding]:
    """Credentials of the base image's registry, and variables that belong to the job."""
    if definition.base_image_password:
        yield only_here(
            "base_image_password",
            "the definition refers to a secret for the base image's registry",
            "for Azure ML, make a workspace connection",
        )
    if definition.environment_variables and not definition.build_context:
        yield warning(
            "environment_variables",
            "variables are part of the definition; they are set when a job runs, and are not in the image",
            "for Azure ML, set them in the job",
        )

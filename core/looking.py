"""Looking into an image, wherever it is; what was found is kept in the workspace's registry by the image's digest."""

from contextlib import suppress

from prefect_environments.core.bases import open_base
from prefect_environments.core.build.inspection import ImageReport, inspect_image
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.site import Site


async def look_inside(
    site: Site, image: str, *, username: str = "", password: str = "", platform: str = ""
) -> ImageReport:
    """What is in an image: interpreters, libc, system, and what Azure ML asks of a base image.

    `image` is a reference or `oci:<folder>:<name>`; `password` is a secret reference. Its layers are read once:
    the next look at the same digest costs three requests. Raises `DefinitionError`, `NotFound`, `BaseImageError`.
    """
    asked = EnvironmentDefinition(
        name="image",
        base_image=image,
        base_image_username=username,
        base_image_password=password,
        platform=platform or "linux/amd64",
    )
    site.progress.step("inspect")
    async with open_base(site, asked) as base:
        kept = await site.catalog.find_report(base.locked.digest)
        if kept is not None:
            with suppress(KeyError, TypeError):
                return ImageReport.from_json({**kept, "reference": base.locked.name})
        found = await inspect_image(base, site.scratch)
        await site.catalog.keep_report(base.locked.digest, found.to_json())
        return found

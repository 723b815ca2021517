"""What the checks of one version share: what was read so far, what was found, and how a check ends."""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

from prefect_environments.core.build.catalog import LAYER_KEY
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import (
    ImageError,
    PrefectEnvironmentsError,
    RegistryAuthError,
    RegistryUnreachable,
    StorageError,
)
from prefect_environments.core.findings import Finding
from prefect_environments.core.lock.model import Lock
from prefect_environments.core.oci.artifact import TITLE
from prefect_environments.core.oci.descriptor import Descriptor
from prefect_environments.core.oci.image import ImageConfig, ImageManifest
from prefect_environments.core.oci.repository import Repository
from prefect_environments.core.redact import redact
from prefect_environments.core.site import Site
from prefect_environments.core.version_record import VersionRecord

_SHOWN = 5
ANEW = (
    "Build the environment again with force=True, which makes the image from its lock. A blob that the registry has "
    "with other bytes must be removed there first"
)


class NotLookedAt(Exception):
    """A check does not apply here, or what it needs is not there; the message says why."""


@dataclass
class Look:
    """A version under verification. `image`, `config` and `lock` are there once their checks have passed."""

    site: Site
    record: VersionRecord
    definition: EnvironmentDefinition
    repository: Repository
    """Where the image is. What is attached to it is in `attachments`, always the environment's own repository."""
    image: ImageManifest | None = None
    config: ImageConfig | None = None
    lock: Lock | None = None
    findings: list[Finding] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)

    @property
    def attachments(self) -> Repository:
        return self.site.repository(self.record.name)

    async def check(self, name: str, advice: str, work: Callable[["Look"], Awaitable[str]]) -> None:
        """Note what `work` finds; it raises for what is wrong. A registry that is out of reach, and a full disk
        here, are no findings, but the errors that they are."""
        try:
            self.findings.append(Finding(name, True, await work(self)))
        except NotLookedAt as reason:
            self.skipped.append((name, str(reason)))
        except (RegistryUnreachable, RegistryAuthError, StorageError):
            raise
        except PrefectEnvironmentsError as error:
            self.findings.append(Finding(name, False, str(error), advice))
        except (ValueError, TypeError, KeyError, AttributeError) as error:  # what somebody wrote there may be anything
            self.findings.append(Finding(name, False, redact(f"{type(error).__name__}: {error}"), advice))

    def needs_image(self) -> ImageManifest:
        if self.image is None:
            raise NotLookedAt("the image cannot be read")
        return self.image

    def needs_config(self) -> ImageConfig:
        if self.config is None:
            raise NotLookedAt("the image's config cannot be read")
        return self.config

    def needs_lock(self) -> Lock:
        if self.lock is None:
            raise NotLookedAt("the lock cannot be read")
        return self.lock

    def needs_managed(self) -> Lock:
        """The lock of an image that was put together here."""
        lock = self.needs_lock()
        if not lock.managed:
            raise NotLookedAt("the image is user-managed: what is in it is not in the lock")
        return lock


def base_layers(image: ImageManifest) -> int:
    """How many layers are below the first that was made here."""
    keyed = [number for number, layer in enumerate(image.layers) if LAYER_KEY in layer.annotations]
    return keyed[0] if keyed else len(image.layers)


def title_of(layer: Descriptor) -> str:
    """A layer for readers: what is in it, where that is known, and its digest."""
    title = layer.annotations.get(TITLE, "")
    return f"{title} ({layer.digest})" if title else layer.digest


def refuse(problems: Iterable[str]) -> None:
    """Raise `ImageError` with the first of the problems, if there are any."""
    found = list(problems)
    if found:
        more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise ImageError("; ".join(found[:_SHOWN]) + more)

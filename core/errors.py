"""The error tree. A message says what was asked, what came and what to do next, and never a secret.

PrefectEnvironmentsError
├── DefinitionError              the definition is wrong, or asks for what this release does not build
│   ├── NameNotAllowed           an environment, workspace or label name is not allowed, or is taken
│   ├── RequirementsError        a requirements file or line cannot be read
│   ├── SpecificationError       another file cannot be read: conda, Azure ML, pylock, pyproject, Dockerfile
│   └── NotSupportedYet          legal, but a later release builds it
├── SecretError                  a secret reference is malformed or cannot be resolved
├── ResolveError                 no set of packages satisfies the definition
│   ├── NoFittingWheel           a package has no wheel for the image's Python and libc
│   └── UndatedPackages          an index does not tell how old its packages are, and an age limit is set
├── PackageError                 a wheel is refused: wrong hash, unsafe or malformed archive
├── BuildError                   building a Dockerfile, or compiling bytecode, failed
│   └── EngineUnavailable        no Docker engine can be reached, or it cannot do what is asked
├── JobError                     a training job cannot be started, or what runs it failed
│   ├── JobFailed                its command failed, ran out of memory or of time
│   └── JobCancelled             somebody cancelled it, or the flow run that it is for
├── ImageError                   an image, manifest or layer is malformed or fails validation
│   ├── DigestMismatch           bytes are not what their digest says
│   └── BaseImageError           the base image cannot carry the environment
├── RegistryError                the registry refused, failed or could not be reached
│   ├── RegistryUnreachable      no connection, or time-outs, after retries
│   ├── RegistryAuthError        credentials are missing, refused or lack a permission
│   └── NotFound                 the repository, manifest or blob does not exist
├── VersionError                 registered versions: not found, altered, or not writable
│   └── VersionNotFound          no such name, version or label
│       └── VersionPruned        there was such a version, but its image was removed
├── VerificationError            a registered version is not what its record and its lock say
└── StorageError                 a local folder (cache, image layout) cannot be used
    └── AlreadyExists            what is to be written is there already, and was not to be replaced
"""

from typing import TYPE_CHECKING

from prefect_environments.core.redact import redact

if TYPE_CHECKING:
    from prefect_environments.core.jobs.launcher import JobResult


class PrefectEnvironmentsError(Exception):
    """Root of all errors that this package raises on purpose. Known secret values are masked in the message."""

    def __init__(self, message: str) -> None:
        super().__init__(redact(message))


class DefinitionError(PrefectEnvironmentsError):
    """The definition is wrong; nothing was built and no network was used to find out."""


class NameNotAllowed(DefinitionError):
    """A name is not allowed, or another name already owns the same repository."""


class RequirementsError(DefinitionError):
    """A requirements file or line cannot be read; the message names file, line and reason."""


class SpecificationError(DefinitionError):
    """A file that defines an environment cannot be read; the message names file, place and reason."""


class NotSupportedYet(DefinitionError):
    """The definition is legal, but this release does not build it."""


class SecretError(PrefectEnvironmentsError):
    """A secret reference is malformed, unknown or cannot be resolved."""


class ResolveError(PrefectEnvironmentsError):
    """The resolver found no answer; its whole explanation is in the message."""


class NoFittingWheel(ResolveError):
    """A resolved package has no wheel for the image's Python, libc and architecture."""


class UndatedPackages(ResolveError):
    """A package index does not tell when its files were uploaded, and only old enough ones are wanted."""


class PackageError(PrefectEnvironmentsError):
    """A package archive is refused: wrong hash, unsafe paths, or not a valid wheel."""


class BuildError(PrefectEnvironmentsError):
    """A build step failed; the message has the step and its last lines."""


class EngineUnavailable(BuildError):
    """No Docker engine can be reached, or it cannot do what the build needs."""


class JobError(PrefectEnvironmentsError):
    """A training job cannot be started, or what runs it failed."""


class JobFailed(JobError):
    """A job ended badly; the message has its last lines. `exit_code` is that of its command, 128 + N for signal N.

    `result` has what it left until then: metrics and outputs.
    """

    def __init__(self, message: str, *, exit_code: int = 1, result: "JobResult | None" = None) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.result = result


class JobCancelled(JobError):
    """Somebody cancelled a job, or the flow run that it is for; nothing of it runs any more."""


class ImageError(PrefectEnvironmentsError):
    """An image, its manifest, config or a layer is malformed."""


class DigestMismatch(ImageError):
    """Bytes do not have the digest or the size that their descriptor says."""


class BaseImageError(ImageError):
    """The base image cannot carry the environment, such as one with no Python in it."""


class RegistryError(PrefectEnvironmentsError):
    """A registry refused a request or answered against its specification.

    `status` is the HTTP status, `code` the registry's own error code (distribution-spec, "Error Codes").
    """

    def __init__(self, message: str, *, status: int | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class RegistryUnreachable(RegistryError):
    """The registry could not be reached, or kept failing, after all retries."""


class RegistryAuthError(RegistryError):
    """Credentials are missing, were refused, or lack the permission."""


class NotFound(RegistryError):
    """The repository, manifest or blob does not exist."""


class VersionError(PrefectEnvironmentsError):
    """Registered versions, or other blocks of the Prefect API, cannot be read or written; or a record was altered."""


class VersionNotFound(VersionError):
    """No such environment, version or label."""


class VersionPruned(VersionNotFound):
    """There was such a version; its image was removed, and its number is not issued again."""


class VerificationError(PrefectEnvironmentsError):
    """A registered version is not what its record and its lock say; the message names each check that failed."""


class StorageError(PrefectEnvironmentsError):
    """A local folder (cache or image layout) cannot be used."""


class AlreadyExists(StorageError, FileExistsError):
    """What is to be written is there already; scripts for Azure ML's SDK v1 expect a `FileExistsError`."""

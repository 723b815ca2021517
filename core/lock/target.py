"""What an image offers to packages: interpreter, libc, architecture. Resolving and choosing wheels look only here,
never at the machine that does the work."""

from dataclasses import dataclass
from typing import Any

from prefect_environments.core.errors import DefinitionError, NotSupportedYet

ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}
"""OCI architecture names to those of Python's platform tags."""


@dataclass(frozen=True, slots=True)
class Platform:
    """An OCI platform; only Linux images are built."""

    architecture: str = "amd64"
    os: str = "linux"

    @classmethod
    def parse(cls, text: str) -> "Platform":
        """Read `linux/amd64`; raises `DefinitionError` for a list of platforms or an unknown one."""
        if "," in text:
            raise NotSupportedYet(
                f"platform {text!r} names several platforms; one image is for one platform: build each on its own"
            )
        os, _, architecture = text.partition("/")
        if os != "linux" or architecture not in ARCHITECTURES:
            known = ", ".join(f"linux/{name}" for name in ARCHITECTURES)
            raise DefinitionError(f"platform {text!r} is not known; expected one of {known}")
        return cls(architecture, os)

    def __str__(self) -> str:
        return f"{self.os}/{self.architecture}"


@dataclass(frozen=True, slots=True)
class Target:
    """The interpreter and the libc of an image.

    `python` is the full version (`3.12.7`), `interpreter` its absolute path in the image, `libc` is `glibc` or
    `musl` with `libc_version` as two numbers (`2.36`).
    """

    python: str
    interpreter: str
    libc: str
    libc_version: str
    platform: Platform = Platform()

    @property
    def python_minor(self) -> str:
        """`3.12` of `3.12.7`."""
        return ".".join(self.python.split(".")[:2])

    def to_json(self) -> dict[str, Any]:
        return {
            "python": self.python,
            "interpreter": self.interpreter,
            "libc": self.libc,
            "libc-version": self.libc_version,
            "platform": str(self.platform),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Target":
        return cls(
            data["python"],
            data["interpreter"],
            data["libc"],
            data["libc-version"],
            Platform.parse(data["platform"]),
        )

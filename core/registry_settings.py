"""How to reach a container registry: its address and credentials, without anything of Prefect."""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from prefect_environments.core.distribution.limits import Limits
from prefect_environments.core.errors import DefinitionError
from prefect_environments.core.redact import remember
from prefect_environments.core.secrets import SecretReference, SecretStore, resolve

if TYPE_CHECKING:
    from prefect_environments.core.azure.registry import AzureRegistry

LAYOUT_PREFIX = "oci:"
_HOST = r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\]"
_ADDRESS = re.compile(rf"(?:{_HOST})(?::(?P<port>[0-9]{{1,5}}))?")


@dataclass(frozen=True, slots=True)
class RegistrySettings:
    """A registry's address with what is needed to talk to it. `username` and `password` are values or references."""

    address: str
    """`host[:port]`, or `oci:<folder>` for an image-layout folder."""
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    plain_http: bool = False
    ca_file: str | None = None
    """PEM file of certificate authorities to trust in addition to the system's."""
    limits: Limits = field(default=Limits(), repr=False)
    """How patient to be with it."""
    azure: "AzureRegistry | None" = field(default=None, repr=False)
    """What an Azure Container Registry has beside this: who signs in where no user does, and what registering locks."""
    fields: tuple[str, str] | None = field(default=None, repr=False, compare=False)
    """What errors call the places of `username` and `password`, where these are not the registry's own."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "address", check_address(self.address))
        if self.password is not None and not SecretReference.is_reference(self.password):
            remember(self.password)

    @property
    def folder(self) -> Path | None:
        """The image-layout folder of an `oci:` address, else `None`."""
        if not self.address.startswith(LAYOUT_PREFIX):
            return None
        return Path(self.address.removeprefix(LAYOUT_PREFIX)).expanduser()

    async def resolved(self, secrets: SecretStore) -> "RegistrySettings":
        """The same with references replaced by their values. Raises `SecretError`."""
        names = self.fields or (f"username of the registry {self.address}", f"password of the registry {self.address}")
        username = await resolve(self.username, secrets, names[0])
        return replace(self, username=username, password=await resolve(self.password, secrets, names[1]))


def check_address(address: object) -> str:
    """`address` if it is `host[:port]` or `oci:<folder>`, hosts in lower case; else `DefinitionError` with advice."""
    if not isinstance(address, str) or not address.strip():
        raise DefinitionError("a registry needs an address: host[:port], or oci:<folder> for a folder on disk")
    if address.startswith(LAYOUT_PREFIX):
        if not address.removeprefix(LAYOUT_PREFIX).strip():
            raise DefinitionError("the address oci:<folder> names no folder, as in oci:/data/images")
        return address
    if "@" in address:  # not shown: what stands before it may be a password
        raise DefinitionError("a registry's address holds no credentials; put them into username and password")
    if "://" in address:
        raise DefinitionError(
            f"a registry's address has no scheme: write host[:port] instead of {address!r:.200}; "
            "for a registry without TLS set plain_http"
        )
    if "/" in address:
        raise DefinitionError(
            f"a registry's address has no path: write host[:port] instead of {address!r:.200}; "
            "a path belongs into the workspace's repository_prefix, a folder on disk is oci:<folder>"
        )
    match = _ADDRESS.fullmatch(address)
    if not match or (match["port"] and not 0 < int(match["port"]) < 65536):
        raise DefinitionError(
            f"a registry's address is host[:port], as in registry.example.com:5000; got {address!r:.200}"
        )
    return address.lower()

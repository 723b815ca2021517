"""An Azure Container Registry: a registry like any other, and what only Azure's has."""

from typing import ClassVar, Self

from pydantic import Field, SecretStr, field_validator, model_validator

from prefect_environments.blocks.azure import AzureCredentials
from prefect_environments.blocks.base import DOCUMENTATION_URL, LOGO_URL, given
from prefect_environments.blocks.context import InWorkspace
from prefect_environments.blocks.keyvault import Keyvault
from prefect_environments.blocks.secrets import registry_secrets
from prefect_environments.core import loop
from prefect_environments.core.azure import acr, acr_import
from prefect_environments.core.azure.acr import AcrTag
from prefect_environments.core.azure.registry import AzureRegistry
from prefect_environments.core.distribution.credentials import Credentials
from prefect_environments.core.errors import DefinitionError
from prefect_environments.core.registry_settings import LAYOUT_PREFIX, RegistrySettings, check_address
from prefect_environments.core.secrets import SecretStore, resolve


class AzureContainerRegistry(InWorkspace):
    """An Azure Container Registry, and who signs in to it.

    With credentials, their identity does; with a username and a password, the admin user or a token of the registry;
    without either, the workspace's credentials, else what `az acr login` and Docker's credential helpers stored, else
    nobody (anonymous pull).

    Example:
        Load a stored registry and list what is in it:
        ```python
        from prefect_environments.blocks import AzureContainerRegistry

        registry = AzureContainerRegistry.load("BLOCK_NAME")
        registry.list_repositories()
        ```
    """

    _block_type_name: ClassVar[str] = "Azure Container Registry"
    _documentation_url = DOCUMENTATION_URL
    _logo_url = LOGO_URL

    login_server: str = Field(default=..., description="The registry's login server, such as myregistry.azurecr.io.")
    credentials: AzureCredentials | None = Field(
        default=None,
        description="Who signs in, if not the workspace's credentials; needs AcrPull, and AcrPush to build into it.",
    )
    username: str | None = Field(
        default=None, description="In place of credentials: the admin user or a token's name, or a secret reference."
    )
    password: SecretStr | None = Field(
        default=None, description="The password that goes with it, or a secret reference such as secret:NAME."
    )
    keyvault: Keyvault | None = Field(
        default=None, title="Key Vault", description="The vault that these two name, if no workspace knows it."
    )
    lock_registered: bool = Field(
        default=False, description="Lock the image of each registered version, so that it is never overwritten or lost."
    )
    subscription_id: str | None = Field(
        default=None,
        description="The Azure subscription of the registry, to import images and to build with ACR Tasks.",
    )
    resource_group: str | None = Field(
        default=None, description="The registry's resource group, to import images and to build with ACR Tasks."
    )
    ca_file: str | None = Field(
        default=None, description="PEM file with certificate authorities to trust in addition to the system's."
    )

    _no_empty_text = field_validator("username", "password", "subscription_id", "resource_group", "ca_file")(given)

    @field_validator("login_server")
    @classmethod
    def _known_server(cls, login_server: str) -> str:
        if login_server.startswith(LAYOUT_PREFIX):
            raise DefinitionError("a login server is a host; a folder (oci:…) is for the ContainerRegistry block")
        found = check_address(login_server)
        if "." not in found and ":" not in found:
            raise DefinitionError(
                f"a login server is a whole host name: {found:.100}.azurecr.io, or as your cloud has it"
            )
        return found

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if (self.username is None) != (self.password is None):
            raise DefinitionError("a registry needs both username and password, or neither of them")
        if self.username is not None and self.credentials is not None:
            raise DefinitionError("a registry takes credentials, or username and password; not both")
        return self

    def settings(self) -> RegistrySettings:
        """What core needs to reach the registry, references not resolved yet."""
        password = self.password.get_secret_value() if self.password else None
        azure = AzureRegistry(
            self.login_server,
            self.credentials.identity() if self.credentials else self._context.identity,
            self.subscription_id,
            self.resource_group,
            self.lock_registered,
            self._described(),
        )
        return RegistrySettings(self.login_server, self.username, password, ca_file=self.ca_file, azure=azure)

    @property
    def secrets(self) -> SecretStore:
        """What resolves its references: Secret blocks, its own Key Vault, and those of the workspace that it is in."""
        return registry_secrets(self.keyvault, self._context)

    async def resolved_settings(self, secrets: SecretStore | None = None) -> RegistrySettings:
        """The same with references resolved, by `secrets` or its own, for use at once. Raises `SecretError`."""
        return await self.settings().resolved(secrets or self.secrets)

    def list_repositories(self) -> list[str]:
        """The paths of all repositories. All methods raise `RegistryAuthError` that names the role that is missing,
        `NotFound`, `RegistryUnreachable` and other errors of a registry."""
        return loop.run(acr.list_repositories(self._resolved()))

    def list_tags(self, repository: str) -> list[AcrTag]:
        """All tags of a repository, the newest first: name, digest, created, updated, size, locked."""
        return loop.run(acr.list_tags(self._resolved(), repository))

    def lock(self, repository: str, reference: str) -> None:
        """Lock a tag, or a manifest by its digest, against being overwritten and deleted."""
        loop.run(acr.set_lock(self._resolved(), repository, reference, locked=True))

    def unlock(self, repository: str, reference: str) -> None:
        """Open a tag or manifest again."""
        loop.run(acr.set_lock(self._resolved(), repository, reference, locked=False))

    def delete_image(self, repository: str, reference: str) -> None:
        """Delete a tag, or by its digest a manifest with all its tags; refused while it is locked."""
        loop.run(acr.delete(self._resolved(), repository, reference))

    def delete_repository(self, repository: str) -> None:
        """Delete a repository with all that is in it; refused while something in it is locked."""
        loop.run(acr.delete_repository(self._resolved(), repository))

    def import_image(
        self,
        source: str,
        target: str,
        *,
        username: str | None = None,
        password: str | None = None,
        source_registry_id: str | None = None,
        overwrite: bool = False,
    ) -> None:
        """Have Azure copy the image `source` (`registry.example.com/team/image:tag`) to `target` (`path:tag`) of this
        registry. `username` and `password` (or references) are for the source; `source_registry_id` is the resource id
        of another Container Registry, which needs none. Needs the extra `prefect-environments[azure-tasks]`."""
        login = _login(username, password, self.secrets)
        loop.run(
            acr_import.import_image(
                self._resolved(),
                source,
                target,
                login=login,
                source_registry_id=source_registry_id,
                overwrite=overwrite,
            )
        )

    def _resolved(self) -> RegistrySettings:
        return loop.run(self.resolved_settings())

    def _described(self) -> str:
        parts = [f"block {self._block_document_name!r}"] if self._block_document_name else []
        if self.credentials is not None and self.credentials._block_document_name:
            parts.append(f"credentials {self.credentials._block_document_name!r}")
        elif self.credentials is None and self._context.credentials:
            parts.append(self._context.credentials)
        return ", ".join(["AzureContainerRegistry", *parts])


def _login(username: str | None, password: str | None, secrets: SecretStore) -> Credentials | None:
    if username is None and password is None:
        return None
    user = loop.run(resolve(username, secrets, "username of the source"))
    word = loop.run(resolve(password, secrets, "password of the source"))
    return Credentials(str(user or ""), str(word or ""))

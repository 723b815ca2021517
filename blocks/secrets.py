"""Secret references resolved through Prefect and the Key Vaults that a workspace knows."""

from collections.abc import Iterable

import httpx
from prefect.blocks.system import Secret

from prefect_environments.blocks.context import Context
from prefect_environments.blocks.keyvault import Keyvault
from prefect_environments.core.azure.keyvault import VaultSettings
from prefect_environments.core.azure.store import KeyVaultSecretStore
from prefect_environments.core.errors import SecretError
from prefect_environments.core.secrets import SecretReference, SecretStore


class PrefectSecretStore:
    """A `SecretStore` of Prefect Secret blocks (`secret:NAME`), which knows no Key Vault."""

    async def get(self, reference: SecretReference) -> str:
        if reference.form != "block":
            raise SecretError(
                f"{reference}: no Key Vault is known here; set the field keyvault of the workspace that is built in, "
                "or put the secret into a Prefect Secret block and write secret:NAME"
            )
        try:
            block: Secret[str] = await Secret.aload(reference.name)
        except ValueError:
            raise SecretError(
                f"{reference}: there is no Secret block named {reference.name!r}; create one in the UI, or with "
                f'Secret(value=…).save("{reference.name}")'
            ) from None
        except (httpx.HTTPError, RuntimeError) as error:
            raise SecretError(
                f"{reference}: the Prefect API did not hand it out ({type(error).__name__}); check PREFECT_API_URL"
            ) from None
        # Not block.get(): that reads JSON, and the password "0123e4" is none of the number it would become.
        value = block.value.get_secret_value()
        if not isinstance(value, str) or not value:
            raise SecretError(f"{reference}: the Secret block holds {type(value).__name__}, not a text with content")
        return value


class WorkspaceSecretStore(PrefectSecretStore):
    """A `SecretStore` of Secret blocks and of a workspace's Key Vaults, the first of which is the default one.

    A reference to a vault that is not among them is refused unless `allow_unknown`.
    """

    def __init__(self, vaults: Iterable[VaultSettings] = (), *, allow_unknown: bool = False) -> None:
        self._vaults = KeyVaultSecretStore(vaults, allow_unknown=allow_unknown)

    async def get(self, reference: SecretReference) -> str:
        if reference.form == "block":
            return await super().get(reference)
        return await self._vaults.get(reference)


def registry_secrets(keyvault: Keyvault | None, context: Context) -> SecretStore:
    """What resolves the references of a registry's block: Secret blocks, its Key Vault, its workspace's vaults."""
    own = [keyvault.within(context).settings()] if keyvault else []
    return WorkspaceSecretStore([*own, *context.vaults], allow_unknown=context.allow_unknown)

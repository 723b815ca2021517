"""References to Key Vaults, resolved through the vaults that are known."""

import asyncio
from collections.abc import Iterable
from dataclasses import replace

from prefect_environments.core.azure.keyvault import VaultSettings, open_vault
from prefect_environments.core.errors import SecretError
from prefect_environments.core.secrets import SecretReference


class KeyVaultSecretStore:
    """A `SecretStore` for both Key Vault forms. The first of `vaults` is the default one.

    A reference to another vault is refused, so that a definition from elsewhere cannot make this process ask a vault
    that nobody chose. With `allow_unknown`, vaults of the default one's cloud are asked with its identity.
    """

    def __init__(self, vaults: Iterable[VaultSettings], *, allow_unknown: bool = False) -> None:
        self._vaults = list(vaults)
        self._allow_unknown = allow_unknown

    async def get(self, reference: SecretReference) -> str:
        """The value; raises `SecretError`."""
        vault = open_vault(self.find(reference))
        return await asyncio.to_thread(vault.get, reference.name, reference.version)

    def find(self, reference: SecretReference) -> VaultSettings:
        """The settings of the vault that a reference names. Raises `SecretError` if it is not known."""
        if reference.form == "block" or not reference.vault:
            raise SecretError(f"{reference}: this is the name of a Prefect Secret block, not of a Key Vault's secret")
        wanted = reference.vault.lower().removesuffix(":443")
        for vault in self._vaults:
            if wanted == (vault.host if reference.form == "secret-uri" else vault.name):
                return vault
        if not self._vaults:
            raise SecretError(
                f"{reference}: no Key Vault is known here; set the workspace's field keyvault to a Keyvault block (or "
                "that of the registry's block, for its own user name and password)"
            )
        if not self._allow_unknown:
            known = ", ".join(vault.host for vault in self._vaults)
            raise SecretError(
                f"{reference}: the Key Vault {wanted} is not one of the workspace's ({known}); add it to the "
                "workspace's field known_vaults, or set its field allow_unknown_vaults"
            )
        return self._unknown(reference, wanted)

    def _unknown(self, reference: SecretReference, wanted: str) -> VaultSettings:
        default = self._vaults[0]
        if reference.form == "vault-name":
            return replace(default, vault=wanted)
        suffix = default.identity.cloud.key_vault_suffix.lower()
        if not wanted.endswith(f".{suffix}"):  # nobody else's server is asked, and told who we are
            raise SecretError(
                f"{reference}: {wanted} is no Key Vault of this cloud, whose vaults end with .{suffix}; add it to the "
                "workspace's field known_vaults if it is yours"
            )
        return replace(default, vault=f"https://{wanted}")

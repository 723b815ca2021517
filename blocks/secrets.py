"""Secret references resolved through Prefect."""

import httpx
from prefect.blocks.system import Secret

from prefect_environments.core.errors import SecretError
from prefect_environments.core.secrets import SecretReference


class PrefectSecretStore:
    """A `SecretStore` of Prefect Secret blocks (`secret:NAME`). Key Vault forms are refused as not possible yet."""

    async def get(self, reference: SecretReference) -> str:
        if reference.form != "block":
            raise SecretError(
                f"{reference}: Azure Key Vault references cannot be resolved yet; "
                "put the secret into a Prefect Secret block and write secret:NAME"
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

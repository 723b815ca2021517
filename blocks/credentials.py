"""Credentials of a private package index."""

from typing import ClassVar, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from prefect_environments.blocks.base import DOCUMENTATION_URL, LOGO_URL, EnvironmentsBlock, given
from prefect_environments.core.errors import DefinitionError
from prefect_environments.core.secrets import SecretStore, resolve


class PackageIndexCredentials(EnvironmentsBlock):
    """A private package index and how to sign in to it.

    Example:
        Load a stored index:
        ```python
        from prefect_environments.blocks import PackageIndexCredentials

        index = PackageIndexCredentials.load("BLOCK_NAME")
        ```
    """

    _block_type_name: ClassVar[str] = "Package Index Credentials"
    _documentation_url = DOCUMENTATION_URL
    _logo_url = LOGO_URL

    url: str = Field(
        default=...,
        description="The index's address without credentials, such as https://packages.example.com/simple.",
    )
    username: str | None = Field(default=None, description="User name, or a secret reference such as secret:NAME.")
    password: SecretStr | None = Field(
        default=None, description="Password or token, or a secret reference such as secret:NAME."
    )

    _no_empty_text = field_validator("username", "password")(given)

    @field_validator("url")
    @classmethod
    def _plain_url(cls, url: str) -> str:
        parts = urlsplit(url)
        if "@" in parts.netloc:
            raise DefinitionError("the index's url holds credentials; put them into username and password")
        if parts.scheme not in ("https", "http") or not parts.hostname or parts.query or parts.fragment:
            raise DefinitionError("the index's url is https://host/path, as in https://packages.example.com/simple")
        return url

    @model_validator(mode="after")
    def _both(self) -> Self:
        if self.password is not None and self.username is None:
            raise DefinitionError("a password needs a username; for tokens, the index's documentation names it")
        return self

    async def credentials(self, secrets: SecretStore) -> tuple[str, str] | None:
        """User name and password, references resolved; `None` for an open index. Raises `SecretError`."""
        username = await resolve(self.username, secrets)
        if username is None:
            return None
        return username, await resolve(self.password.get_secret_value() if self.password else None, secrets) or ""

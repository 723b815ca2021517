"""Secret references, the stores that resolve them, and what keeps secret values out of text.

Definitions, versions and flow-run parameters hold *references* only; a value exists in the process that needs it.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NoReturn, Protocol

from prefect_environments.core.errors import DefinitionError, SecretError
from prefect_environments.core.redact import MASK, redact, remember

FORMS = (
    "@Microsoft.KeyVault(SecretUri=https://VAULT/secrets/NAME[/VERSION])",
    "@Microsoft.KeyVault(VaultName=VAULT;SecretName=NAME[;SecretVersion=VERSION])",
    "secret:NAME",
)
"""The forms of a reference: two of Azure Key Vault (App Service, "Key Vault references"), one of a Prefect Secret
block."""

_KEY_VAULT = re.compile(r"@Microsoft\.KeyVault\s*\(", re.IGNORECASE)
_BLOCK_PREFIX = "secret:"
_BLOCK_NAME = re.compile(r"[a-z0-9-]{1,255}")
SECRET_NAME = re.compile(r"[0-9A-Za-z-]{1,127}")
SECRET_VERSION = re.compile(r"[0-9A-Za-z]{1,64}")
VAULT_NAME = re.compile(r"[A-Za-z][0-9A-Za-z-]{1,22}[0-9A-Za-z]")
_SECRET_URI = re.compile(
    r"https://(?P<vault>[0-9A-Za-z](?:[0-9A-Za-z.-]*[0-9A-Za-z])?(?::[0-9]{1,5})?)"
    r"/secrets/(?P<name>[^/?#]+)(?:/(?P<version>[^/?#]+))?/?",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class SecretReference:
    """Where a secret is: in an Azure Key Vault, by its URI or by the vault's name, or in a Prefect Secret block.

    `str()` gives the canonical text, which parses to an equal reference. It holds nothing secret.
    """

    form: Literal["secret-uri", "vault-name", "block"]
    name: str
    vault: str | None = None
    """The vault's host (form `secret-uri`) or name (form `vault-name`)."""
    version: str | None = None
    """The secret's version; the newest if `None`."""

    @classmethod
    def is_reference(cls, text: object) -> bool:
        """Whether `text` is meant as a reference: it starts as one, and may still be malformed."""
        return isinstance(text, str) and bool(text.startswith(_BLOCK_PREFIX) or _KEY_VAULT.match(text))

    @classmethod
    def parse(cls, text: str, field: str = "") -> "SecretReference":
        """Read a reference; `SecretError` names `field`, the place that it stands in, the form and the part that is
        wrong, never what it contains, as a value pasted into the wrong place may be the secret itself."""
        try:
            return cls._parse(text)
        except SecretError as error:
            raise SecretError(f"{field}: {error}" if field else str(error)) from None

    @classmethod
    def _parse(cls, text: str) -> "SecretReference":
        if not cls.is_reference(text):
            raise SecretError(f"this is not a secret reference; its forms are: {', '.join(FORMS)}")
        if text.startswith(_BLOCK_PREFIX):
            name = text.removeprefix(_BLOCK_PREFIX)
            if not _BLOCK_NAME.fullmatch(name):
                _malformed("the NAME of secret:NAME is the name of a Secret block: lower-case letters, digits and '-'")
            return cls("block", name)
        if not text.endswith(")"):
            _malformed("@Microsoft.KeyVault(…) has no closing bracket at its end")
        fields = _fields(text[text.index("(") + 1 : -1])
        return _by_uri(fields) if "secreturi" in fields else _by_vault_name(fields)

    def __str__(self) -> str:
        if self.form == "block":
            return f"{_BLOCK_PREFIX}{self.name}"
        if self.form == "secret-uri":
            version = f"/{self.version}" if self.version else ""
            return f"@Microsoft.KeyVault(SecretUri=https://{self.vault}/secrets/{self.name}{version})"
        version = f";SecretVersion={self.version}" if self.version else ""
        return f"@Microsoft.KeyVault(VaultName={self.vault};SecretName={self.name}{version})"


class SecretStore(Protocol):
    """Whatever can look up the value behind a reference."""

    async def get(self, reference: SecretReference) -> str:
        """The secret's value. Raises `SecretError` if it is unknown, refused or of a form the store cannot read."""


class SecretValue(str):
    """A secret's value that remembers its `reference` and is masked in every log line and error from now on.

    It is a real `str`: `str()`, formatting and JSON give the value, for the one place that needs it. Its `repr` is
    masked, and pickling is refused, because a pickle is stored.
    """

    reference: SecretReference

    def __new__(cls, value: str, reference: SecretReference) -> "SecretValue":
        self = super().__new__(cls, value)
        self.reference = reference
        remember(str(self))
        return self

    def __repr__(self) -> str:
        return f"SecretValue({MASK!r}, reference={str(self.reference)!r})"

    def __copy__(self) -> "SecretValue":
        return self

    def __deepcopy__(self, memo: object) -> "SecretValue":
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise SecretError(f"the value of {self.reference} is not pickled; hand its reference on and resolve it there")


async def resolve(text: str | None, store: SecretStore, field: str = "") -> str | None:
    """The value behind `text` if it is a reference (a `SecretValue`), else `text` as it is.

    Raises `SecretError` for a malformed reference and for one that the store cannot resolve; it begins with `field`,
    the place that `text` stands in, and the reference.
    """
    if text is None or isinstance(text, SecretValue) or not SecretReference.is_reference(text):
        return text
    reference = SecretReference.parse(text, field)
    try:
        return SecretValue(await store.get(reference), reference)
    except SecretError as error:
        said = str(error).removeprefix(f"{reference}: ")
        raise SecretError(": ".join(part for part in (field, str(reference), said) if part)) from None


class RedactingFilter(logging.Filter):
    """Masks known secret values in a record's message, arguments, traceback and stack; lets every record pass.

    Add it to handlers rather than loggers: a logger's filters don't see what its children log.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            message = record.getMessage()
        except Exception:
            return True  # logging itself reports a bad format string, with its own traceback
        masked = redact(message)
        if masked != message:
            record.msg, record.args = masked, None
        if record.exc_info and not record.exc_text:
            text = logging.Formatter().formatException(record.exc_info)
            record.exc_text = redact(text)
            if record.exc_text != text:
                record.exc_info = None  # handlers that render it themselves would show the secret
        elif record.exc_text:
            record.exc_text = redact(record.exc_text)
        if record.stack_info:
            record.stack_info = redact(record.stack_info)
        return True


_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_WORDS = re.compile(r"[A-Za-z0-9]+")
_SECRET_WORD = re.compile(
    r"\w*(PASSWORDS?|PASSWD|PASSPHRASE|CREDENTIALS?|SECRETS?|APIKEY|TOKEN|CONNECTIONSTRING)|PASS|JWT"
)
_SECRET_PHRASE = re.compile(
    r"(^|_)((API|ACCESS|ACCOUNT|STORAGE|PRIVATE|SIGNING|ENCRYPTION|AUTH|MASTER|SHARED|SUBSCRIPTION|OPENAI|ANTHROPIC|FERNET|DJANGO|SSH)_KEY"
    r"|CONN(ECTION)?_STR(ING)?|\w+_PWD)($|_)|(^|_)SAS$"
)
_ABOUT_A_SECRET = re.compile(
    "FILE|PATH|DIR|FOLDER|NAMES?|URL|URI|ENDPOINT|HOST|ID|LIMIT|LENGTH|LEN|COUNT|SIZE|TTL|TIMEOUT|EXPIRY|TYPE|MODE|"
    "ENABLED|POLICY|PARALLELISM|PROVIDER|VERSION|INDEX|IDX|RATE|CLASS|ALGORITHM"
)
_MODEL_TOKEN = re.compile("PAD|EOS|BOS|UNK|CLS|SEP|MASK|START|END|STOP|MAX|MIN|NUM|SPECIAL")
_PLAIN_VALUES = frozenset(("", "0", "1", "true", "false", "yes", "no", "on", "off", "none", "null"))
_SECRET_VALUES = re.compile(
    r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY"
    r"|(?:AccountKey|SharedAccessKey|SharedAccessSignature)="
    r"|(?:^|;)\s*(?:password|pwd)\s*=\s*[^;\s]"
    r"|[?&]sig=[\w%+/=-]{20}"
    r"|[a-z][a-z0-9+.-]*://[^/\s:@]*:[^/\s@]+@"
    r"|^(?:bearer|basic)\s+\S{8}",
    re.IGNORECASE,
)
_TOKENS = re.compile(
    r"\b(?:gh[pousr]_[A-Za-z0-9]{20}|github_pat_\w{20}|glpat-[\w-]{20}|xox[abprs]-[\w-]{10}|(?:AKIA|ASIA)[0-9A-Z]{16}\b"
    r"|AIza[\w-]{35}|hf_[A-Za-z0-9]{30}|npm_[A-Za-z0-9]{30}|pypi-[\w-]{40}|dapi[0-9a-f]{32}|pn[ub]_[A-Za-z0-9]{30}"
    r"|sk-[\w-]{20}|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]*)"
)


def looks_secret(name: str, value: str) -> bool:
    """Whether an environment variable looks like a literal secret, by its name or its value.

    A guess, for a question to the user: references, switches and what is only about a secret (`PASSWORD_FILE`,
    `TOKENIZERS_PARALLELISM`, `MAX_TOKENS`, `PAD_TOKEN`) are not.
    """
    if SecretReference.is_reference(value) or value.strip().lower() in _PLAIN_VALUES:
        return False
    return bool(_SECRET_VALUES.search(value) or _TOKENS.search(value)) or _secret_name(name)


def check_variables(variables: Mapping[str, str], *, allow_literal: bool) -> None:
    """Raise `DefinitionError` for a literal value that looks like a secret, `SecretError` for a malformed reference."""
    for name, value in variables.items():
        if SecretReference.is_reference(value):
            SecretReference.parse(value, f"environment_variables.{name}")
        elif looks_secret(name, value) and not allow_literal:
            raise DefinitionError(
                f"the environment variable {name} looks like a secret, and would be stored in plain text: give a "
                "reference (secret:NAME), or set allow_literal_secrets if it is none"
            )


def _secret_name(name: str) -> bool:
    words = [word.upper() for word in _WORDS.findall(_CAMEL.sub("_", name).replace("_", " "))]
    if not words or _ABOUT_A_SECRET.fullmatch(words[-1]):
        return False
    if words[-1] == "TOKEN" and any(_MODEL_TOKEN.fullmatch(word) for word in words):
        return False
    return any(_SECRET_WORD.fullmatch(word) for word in words) or bool(_SECRET_PHRASE.search("_".join(words)))


def _fields(text: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    for part in text.split(";"):
        key, equals, value = part.partition("=")
        key = key.strip().lower()
        if key not in ("secreturi", "vaultname", "secretname", "secretversion") or not equals:
            _malformed("inside the brackets of @Microsoft.KeyVault(…) stand SecretUri, or VaultName and SecretName")
        if key in fields:
            _malformed("a field of @Microsoft.KeyVault(…) is there twice")
        fields[key] = value.strip()
    return fields


def _by_uri(fields: dict[str, str]) -> SecretReference:
    match = _SECRET_URI.fullmatch(fields["secreturi"])
    if len(fields) > 1:
        _malformed("SecretUri stands alone; name and version are parts of the URI")
    if not match:
        _malformed("SecretUri is https://VAULT/secrets/NAME or https://VAULT/secrets/NAME/VERSION")
    return _reference("secret-uri", match["vault"].lower(), match["name"], match["version"])


def _by_vault_name(fields: dict[str, str]) -> SecretReference:
    if not fields.get("vaultname") or not fields.get("secretname"):
        _malformed("without SecretUri, both VaultName and SecretName are needed")
    if not VAULT_NAME.fullmatch(fields["vaultname"]):
        _malformed("VaultName is 3 to 24 letters, digits and '-', starting with a letter")
    # An empty SecretVersion means the newest, as it does in App Service.
    return _reference("vault-name", fields["vaultname"], fields["secretname"], fields.get("secretversion") or None)


def _reference(
    form: Literal["secret-uri", "vault-name"], vault: str, name: str, version: str | None
) -> SecretReference:
    if not SECRET_NAME.fullmatch(name):
        _malformed("the secret's name is 1 to 127 letters, digits and '-'")
    if version is not None and not SECRET_VERSION.fullmatch(version):
        _malformed("the secret's version is letters and digits")
    return SecretReference(form, name, vault, version)


def _malformed(why: str) -> NoReturn:
    raise SecretError(f"malformed secret reference: {why} (its text is not shown, as it may hold a secret)")

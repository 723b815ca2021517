"""Names of environments and workspaces, and what is derived from them: slugs, repositories, document names."""

import hashlib
import re

from prefect_environments.core.errors import NameNotAllowed

ENVIRONMENT_NAME_LIMIT = 128
WORKSPACE_NAME_LIMIT = 60
DOCUMENT_NAME_LIMIT = 120

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_VERSION = re.compile(r"0*[1-9][0-9]{0,16}")  # Python reads no number of thousands of digits, and raises ValueError
_SEPARATORS = re.compile(r"[._-]+")
_RESERVED = ("microsoft", "azureml")
_CURATED = frozenset({"AzureML-gradient-boosting", "AzureML-sklearn", "AzureML-torch"})
"""Names of the definitions in core/curated, which the steps register as they are and in no other form."""
_PREFIX_LIMIT = 100  # leaves room for `--v` and 17 digits within DOCUMENT_NAME_LIMIT
_HASH_DIGITS = 16


def check_name(name: object) -> str:
    """`name` if it may name an environment: 1-128 of `[A-Za-z0-9._-]`, starting with a letter or digit, and not
    one of the reserved `Microsoft*` and `AzureML*` (matched without case) unless it is that of a curated environment;
    else `NameNotAllowed`."""
    checked = _checked(name, "an environment name", ENVIRONMENT_NAME_LIMIT)
    if checked.lower().startswith(_RESERVED) and not is_curated(checked):
        raise NameNotAllowed(
            f"the environment name {checked!r} is reserved: names that start with Microsoft or AzureML belong to "
            "curated environments; choose another, such as 'my-" + checked + "'"
        )
    return checked


def version_number(text: str) -> int | None:
    """The number of a version as users write it, from 1 to 17 digits; `None` for anything else."""
    return int(text) if _VERSION.fullmatch(text) else None


def is_curated(name: str) -> bool:
    """Whether a curated environment has this name."""
    return name in _CURATED


def check_workspace_name(name: object) -> str:
    """`name` if it may name a workspace: 1-60 characters of the same grammar, nothing reserved; else
    `NameNotAllowed`."""
    return _checked(name, "a workspace name", WORKSPACE_NAME_LIMIT)


def slug(name: str) -> str:
    """`name` in lower case, with each run of `.`, `_` and `-` as one `-` and none at its ends: a legal component of
    a repository's path (distribution-spec, "Pulling manifests"). Names with one slug share a repository."""
    return _SEPARATORS.sub("-", name).strip("-").lower()


def document_prefix(workspace: str, name: str) -> str:
    """What the names of all documents of one environment start with; a letter for the kind and a number follow."""
    return _shortened(f"{workspace_prefix(workspace)}{slug(name)}") + "--"


def workspace_prefix(workspace: str) -> str:
    """What the document names of all environments of one workspace start with."""
    return f"{slug(workspace)}--"


def document_name(workspace: str, name: str, version: int) -> str:
    """The name of a version's document: `{slug(workspace)}--{slug(name)}--v{version}`, at most 120 of `[a-z0-9-]`.

    Slugs contain no `--`, so different slugs or numbers give different names. Where the two slugs are too long
    together they are cut, and `---` and 16 digits of their sha256 keep them apart; all versions of an environment
    share that prefix, so they can still be listed by it.
    """
    if version < 1:
        raise NameNotAllowed(f"versions are numbered from 1, got {version}")
    return f"{document_prefix(workspace, name)}v{version}"


def history_name(workspace: str, name: str, number: int) -> str:
    """The name of the document of an entry of an environment's history, made like that of a version, with `h`."""
    return f"{document_prefix(workspace, name)}h{number}"


def use_name(workspace: str, name: str, version: int) -> str:
    """The name of the document that says when a version was last used, made like that of a version, with `u`."""
    return f"{document_prefix(workspace, name)}u{version}"


def _shortened(text: str) -> str:
    if len(text) <= _PREFIX_LIMIT:
        return text
    # The cut may fall on a `-`; without it the three dashes stay recognisable, as no slug has two in a row.
    kept = text[: _PREFIX_LIMIT - 3 - _HASH_DIGITS].rstrip("-")
    return f"{kept}---{hashlib.sha256(text.encode()).hexdigest()[:_HASH_DIGITS]}"


def _checked(name: object, what: str, limit: int) -> str:
    if isinstance(name, str) and len(name) <= limit and _NAME.fullmatch(name):
        return name
    came = repr(name) if name is None or isinstance(name, str) else type(name).__name__
    if len(came) > 2 * limit:
        came = f"{came[:limit]}… ({len(str(name))} characters)"
    raise NameNotAllowed(
        f"{what} is 1 to {limit} letters (A-Z, a-z), digits, '.', '_' and '-', "
        f"starting with a letter or digit; got {came}"
    )

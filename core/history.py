"""What happened to an environment after its versions were registered: labels set, versions pruned, names archived.

The history of an environment is a list of numbered entries, each created once and never changed. What holds now is
read from all of them in order. An entry is written for the state that its writer saw: of two who write at once one
gets the number, and the other looks at the new state and decides again. So a label never moves unseen, and a version
is never pruned under a label that was set a moment before.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from prefect_environments.core.errors import NameNotAllowed, VersionError
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.version_record import canonical

SCHEMA_VERSION = 1
LABEL_LIMIT = 60
LATEST = "latest"
"""The label that is always the newest version; nobody sets it."""

Kind = Literal["labelled", "pruning", "spared", "pruned", "archived", "restored"]
_KINDS = frozenset(get_args(Kind))

# A label is a tag of the image, too (distribution-spec, "Pulling manifests"), and must not look like what builds tag.
_LABEL = re.compile(r"[A-Za-z_][A-Za-z0-9._-]*")
_TAKEN = re.compile(r"[0-9a-f]{64}|sha(256|512)-.*|v[0-9]+", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that happened to an environment."""

    workspace: str
    name: str
    kind: Kind
    number: int = 0
    """From 1, without a gap; 0 in a draft."""
    version: int = 0
    """The version that it is about; 0 of a label that was removed, and of what concerns the whole environment."""
    label: str = ""
    reason: str = ""
    created: str = ""
    """ISO 8601, UTC; filled in when it is written."""
    created_by: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    """Facts about it, such as the digest and the bytes of a pruned image."""
    nonce: str = ""
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> dict[str, Any]:
        """The entry as a JSON object."""
        return asdict(self)

    def digest(self) -> str:
        """The digest of the entry's canonical JSON, stored beside it."""
        return digests.of(canonical(self.to_json()))


_FIELDS: dict[str, type] = {
    f.name: int if f.type in (int, "int") else Mapping if "Mapping" in str(f.type) else str for f in fields(Entry)
}


def checked_entry(document: Any, digest: object, where: str) -> Entry:
    """The entry in a stored document, whose bytes must have the digest stored with it; else `VersionError`."""
    if not isinstance(document, Mapping) or not isinstance(digest, str):
        raise VersionError(f"{where} holds no entry of a history; remove it or restore it from a backup")
    if digests.of(canonical(document)) != digest:
        raise VersionError(f"{where} was altered: it does not have the digest that was stored with it; restore it")
    wrong = [key for key, kind in _FIELDS.items() if key in document and not isinstance(document[key], kind)]
    if (
        wrong
        or not {"workspace", "name"} <= document.keys()
        or document.get("kind") not in _KINDS
        or document.get("schema_version", 1) > SCHEMA_VERSION
    ):
        raise VersionError(f"{where} was written by a newer release; upgrade prefect-environments")
    return Entry(**{key: document[key] for key in _FIELDS if key in document})


@dataclass(frozen=True, slots=True)
class Life:
    """What holds now, read from an environment's history."""

    labels: Mapping[str, int] = field(default_factory=dict)
    """Version by label."""
    pruning: frozenset[int] = frozenset()
    """Versions whose image is being removed, or was left half removed: nothing may rely on it any more."""
    pruned: Mapping[int, Entry] = field(default_factory=dict)
    """What is left of versions without an image: their number, which is not issued again, and who pruned them when."""
    archived: bool = False
    last: int = 0
    """Number of the last entry."""

    @property
    def gone(self) -> frozenset[int]:
        """The versions that nobody may use any more."""
        return self.pruning | frozenset(self.pruned)

    def labels_of(self, version: int) -> list[str]:
        """The labels of a version, by name."""
        return sorted(label for label, labelled in self.labels.items() if labelled == version)


def life(entries: Iterable[Entry]) -> Life:
    """What holds after all `entries`."""
    labels: dict[str, int] = {}
    pruning: set[int] = set()
    pruned: dict[int, Entry] = {}
    archived, last = False, 0
    for entry in sorted(entries, key=lambda entry: entry.number):
        last = entry.number
        if entry.kind == "labelled":
            labels.pop(entry.label, None)
            if entry.version:
                labels[entry.label] = entry.version
        elif entry.kind == "pruning":
            pruning.add(entry.version)
        elif entry.kind in ("spared", "pruned"):
            pruning.discard(entry.version)
            if entry.kind == "pruned":
                pruned[entry.version] = entry
        else:
            archived = entry.kind == "archived"
    return Life(labels, frozenset(pruning), pruned, archived, last)


def check_label(label: object) -> str:
    """`label` if it may be set: 1-60 of `[A-Za-z0-9._-]`, starting with a letter or `_`, nothing that builds use as
    a tag, and not `latest`; else `NameNotAllowed`."""
    if not isinstance(label, str) or len(label) > LABEL_LIMIT or not _LABEL.fullmatch(label):
        raise NameNotAllowed(
            f"a label is 1 to {LABEL_LIMIT} letters, digits, '.', '_' and '-', starting with a letter or '_', such as "
            f"production; got {label!r:.100}"
        )
    if label.lower() == LATEST:
        raise NameNotAllowed("the label latest is always the newest version and cannot be set; choose another name")
    if _TAKEN.fullmatch(label):
        raise NameNotAllowed(f"the label {label!r} looks like a version or a digest; choose a word, such as staging")
    return label

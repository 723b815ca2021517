"""`list` and `show`: what is registered. Both ask the versions; `show` asks the registry for the lock, too."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from prefect_environments.cli.command import Session, command
from prefect_environments.cli.target import METAVAR, Target
from prefect_environments.cli.target import target as parse_target

if TYPE_CHECKING:
    from prefect_environments.cli.output import Part, Table
    from prefect_environments.core.history import Entry
    from prefect_environments.core.lock.model import Lock
    from prefect_environments.core.shelf import Book
    from prefect_environments.core.site import Site
    from prefect_environments.core.versions import VersionRecord

_COLUMNS = ("name", "version", "labels", "created", "packages", "size", "state", "digest")


@command(
    "list",
    "The newest versions, or all of one environment.",
    "prefect-environments list",
    "prefect-environments list iris --workspace ./environments",
    "prefect-environments list --archived --json",
)
@click.argument("name", default="")
@click.option("--archived", is_flag=True, help="Archived environments, and pruned versions, too.")
def list_(session: Session, name: str, archived: bool) -> int:
    """The newest version of every environment, or every version of one.

    Without a terminal a line is: name, version, labels, created, packages, bytes, state, digest.
    """
    from prefect_environments.core import loop

    workspace = session.workspace()
    if name:
        book = loop.run(workspace.versions.book(name))
        numbers = book.numbers if archived else book.living
        rows = [_row(book, number) for number in numbers]
    else:
        books = loop.run(workspace.versions.books())
        shown = [books[one] for one in sorted(books, key=str.lower) if archived or not books[one].life.archived]
        rows = [_row(book, (book.living or book.numbers)[-1]) for book in shown if book.living or archived]
    session.tell({"workspace": workspace.name, "environments": rows}, _table(rows))
    return 0


def _row(book: "Book", number: int) -> dict[str, Any]:
    record, life = book.load(number), book.life
    state = "pruned" if number in life.pruned else "pruning" if number in life.pruning else ""
    return {
        "name": record.name,
        "version": number,
        "labels": life.labels_of(number),
        "created": record.created,
        "packages": record.packages,
        "size": record.size,
        "state": state or ("archived" if life.archived else "registered"),
        "reference": record.reference,
        "digest": record.digest,
    }


def _table(rows: list[dict[str, Any]]) -> "Table":
    from prefect_environments.cli.output import Bytes, Digest, Table, When

    shown = [
        {
            **row,
            "labels": ", ".join(row["labels"]),
            "size": Bytes(row["size"]),
            "created": When(row["created"]),
            "digest": Digest(row["digest"]),
        }
        for row in rows
    ]
    return Table(_COLUMNS, [[row[column] for column in _COLUMNS] for row in shown])


@command(
    "show",
    "One version: packages, base, labels, who, when, size.",
    "prefect-environments show iris",
    "prefect-environments show iris:3 --json",
    "prefect-environments show iris@production --workspace team",
)
@click.argument("target", type=parse_target, metavar=METAVAR)
def show(session: Session, target: Target) -> int:
    """One version: image, base, packages, labels, who built it when and how large, and what happened to it since.

    Of environment variables only the names are shown. Without a terminal each line begins with what it is about.
    """
    from prefect_environments.cli import output
    from prefect_environments.core import attachments, loop
    from prefect_environments.core.errors import ImageError, NotFound, VersionNotFound

    workspace = session.workspace()
    record = loop.run(target.find(workspace))
    try:
        book = loop.run(workspace.versions.book(record.name))
    except VersionNotFound:  # a curated one that nobody has built
        book = None

    async def read(site: "Site") -> "tuple[Lock | None, str]":
        if not record.lock_digest:
            return None, "it is not built yet"
        try:
            return await attachments.read_lock(site.repository(record.name), record.lock_digest), ""
        except (NotFound, ImageError) as error:
            return None, str(error)

    lock, note = session.at(workspace, read)
    document = _document(record, book, lock)
    if note:
        document["note"] = note
        click.echo(f"warning: its packages cannot be shown: {output.clean(note)}", err=True)
    session.tell(document, *_parts(document))
    return 0


def _document(record: "VersionRecord", book: "Book | None", lock: "Lock | None") -> dict[str, Any]:
    life = book.life if book else None
    used = book.used.get(record.version) if book else None
    return {
        "workspace": record.workspace,
        "name": record.name,
        "version": record.version,
        "reference": record.reference,
        "digest": record.digest,
        "image_hash": record.image_hash,
        "labels": life.labels_of(record.version) if life else [],
        "archived": bool(life and life.archived),
        "description": record.description,
        "tags": dict(record.tags),
        "platform": record.platform,
        "python_path": record.python_path,
        "python": lock.target.python if lock else "",
        "base": {"name": lock.base.name, "digest": lock.base.digest} if lock else None,
        "size": record.size,
        "created": record.created,
        "created_by": dict(record.created_by),
        "used": used.isoformat() if used else "",
        "origin": dict(record.origin),
        "environment_variables": sorted(record.environment_variables),
        "packages": list(_packages(lock)) if lock else [],
        "history": [_event(entry) for entry in book.entries if _is_about(entry, record.version)] if book else [],
    }


def _packages(lock: "Lock") -> Iterator[dict[str, Any]]:
    for one in lock.packages:
        yield {"kind": "pip", "name": one.name, "version": one.version, "size": one.size or 0}
    for other in lock.conda:
        yield {
            "kind": "conda",
            "name": other.name,
            "version": f"{other.version}={other.build}",
            "size": other.size or 0,
        }


def _is_about(entry: "Entry", version: int) -> bool:
    """Also what took a label away from the version, and what concerns all versions."""
    return version in (entry.version, entry.details.get("from")) or entry.kind in ("archived", "restored")


def _event(entry: "Entry") -> dict[str, Any]:
    return {
        "created": entry.created,
        "kind": entry.kind,
        "version": entry.version,
        "label": entry.label,
        "reason": entry.reason,
        "by": str(entry.created_by.get("user") or entry.created_by.get("flow_run_name") or ""),
    }


def _parts(document: dict[str, Any]) -> "Iterator[Part]":
    from prefect_environments.cli.output import Bytes, Table, When, facts

    base, made, origin = document["base"] or {}, document["created_by"], document["origin"]
    yield facts(
        {
            "name": document["name"],
            "version": document["version"],
            "reference": document["reference"],
            "labels": ", ".join(document["labels"]),
            "state": "archived" if document["archived"] else "",
            "description": document["description"],
            "tags": ", ".join(f"{key}={value}" for key, value in document["tags"].items()),
            "base": base.get("name", ""),
            "base digest": base.get("digest", ""),
            "platform": document["platform"],
            "python": " ".join(filter(None, (document["python"], document["python_path"]))),
            "size": Bytes(document["size"]),
            "created": document["created"],
            "by": ", ".join(f"{key} {value}" for key, value in made.items() if isinstance(value, str)),
            "last used": document["used"],
            "copied from": origin.get("reference", ""),
            "variables": ", ".join(document["environment_variables"]),
        }
    )
    packages = [(one["name"], one["version"], one["kind"], Bytes(one["size"])) for one in document["packages"]]
    yield Table(("package", "version", "kind", "file"), packages, f"{len(packages)} packages", "package")
    events = [
        (When(one["created"]), one["kind"], one["label"], one["version"] or "", one["by"], one["reason"])
        for one in document["history"]
    ]
    yield Table(("when", "what", "label", "version", "by", "why"), events, "history", "history")

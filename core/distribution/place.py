"""One repository of one registry as the operations see it: how to address it, how to count."""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from yarl import URL

from prefect_environments.core.distribution.http import Transport
from prefect_environments.core.distribution.messages import ANSWER_LIMIT, Body, Request, scopes_of
from prefect_environments.core.oci.descriptor import Descriptor
from prefect_environments.core.oci.repository import Traffic

UNKNOWN = frozenset({"NAME_UNKNOWN", "MANIFEST_UNKNOWN", "BLOB_UNKNOWN"})
"""The registry's own words for "not there" (distribution-spec, "Error Codes")."""


@dataclass(frozen=True, slots=True)
class Writers:
    """Those of this process who add to one list of referrers: one at a time, and that one for all who wait."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    entries: dict[str, Descriptor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Shared:
    """What all repositories of one registry share."""

    transport: Transport
    address: str
    traffic: Traffic
    uploads: asyncio.Semaphore
    # Apart from uploads, so that a consumer that uploads while it reads cannot wait for itself.
    downloads: asyncio.Semaphore
    subjects: dict[str, Writers] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Place:
    """A repository's path in a registry."""

    shared: Shared
    path: str
    traffic: Traffic = field(default_factory=Traffic)

    @property
    def transport(self) -> Transport:
        return self.shared.transport

    @property
    def name(self) -> str:
        """`host/path`."""
        return f"{self.shared.address}/{self.path}"

    def url(self, tail: str) -> URL:
        """The address of `/v2/<path>/<tail>`; `tail` may have a query and is encoded already."""
        return URL(f"{self.transport.origin}v2/{self.path}/{tail}", encoded=True)

    def request(
        self,
        method: str,
        target: str | URL,
        step: str,
        *,
        actions: Iterable[str] = ("pull",),
        expect: Iterable[int] = (200,),
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        limit: int = ANSWER_LIMIT,
        also_pull: str | None = None,
    ) -> Request:
        """A request to this repository; `also_pull` is another path that it must be allowed to read."""
        scopes = scopes_of(self.path, *actions)
        if also_pull is not None:
            scopes |= scopes_of(also_pull, "pull")
        return Request(
            method=method,
            url=target if isinstance(target, URL) else self.url(target),
            where=self.name,
            step=step,
            expect=frozenset(expect),
            scopes=scopes,
            headers=headers or {},
            body=body,
            limit=limit,
            traffic=(self.traffic,),
        )

    def count(self, *, sent: int = 0, received: int = 0) -> None:
        """Count bytes of blobs and manifests, here and for the whole registry."""
        for traffic in (self.traffic, self.shared.traffic):
            traffic.bytes_sent += sent
            traffic.bytes_received += received

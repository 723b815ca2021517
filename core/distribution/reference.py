"""References to images in registries: `host[:port]/path[:tag][@digest]` (distribution-spec, "Pulling manifests")."""

import ipaddress
import re
from dataclasses import dataclass

from prefect_environments.core.errors import DefinitionError, ImageError
from prefect_environments.core.oci import digest as digests

DOCKER_HUB = "docker.io"
_DOCKER_HUB_API = "registry-1.docker.io"
_DOCKER_HUB_NAMES = frozenset({DOCKER_HUB, "index.docker.io", _DOCKER_HUB_API})

PATH_LIMIT = 255
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_PORT = re.compile(r"[0-9]{1,5}")


@dataclass(frozen=True, slots=True)
class Reference:
    """Where an image is: registry host, repository path, and a tag, a digest or both.

    Made by `parse`; `str` gives the canonical form, which parses to an equal reference.
    """

    host: str
    path: str
    tag: str | None = None
    digest: str | None = None

    def __post_init__(self) -> None:
        if check_host(self.host) != self.host:
            raise DefinitionError(f"registry host {self.host!r:.100} is not in canonical form; use Reference.parse")
        check_path(self.path)
        if self.tag is not None:
            check_tag(self.tag)
        if self.digest is not None:
            _check_digest(self.digest, self.digest)

    @classmethod
    def parse(cls, text: str) -> "Reference":
        """Read `registry.example.com:5000/a/b:tag@sha256:…`, or a short name of Docker Hub such as `python:3.12`.

        Raises `DefinitionError`, which names the part that is wrong.
        """
        if not isinstance(text, str) or not text:
            raise DefinitionError(
                "an image reference is empty; expected something like registry.example.com/team/image:tag"
            )
        if "://" in text:
            raise DefinitionError(
                f"image reference {text!r:.200} has a URL's scheme; write it without {text.partition('://')[0]}://"
            )
        if text.startswith("oci:"):
            raise DefinitionError(f"{text!r:.200} names an image-layout folder, not an image in a registry")
        rest, at, digest = text.partition("@")
        if at:
            _check_digest(digest, text)
        name, tag = _split_tag(rest)
        if tag is not None:
            check_tag(tag)
        host, path = _split_host(name)
        return cls(check_host(host), check_path(path), tag, digest if at else None)

    @property
    def repository(self) -> str:
        """`host/path`."""
        return f"{self.host}/{self.path}"

    @property
    def identifier(self) -> str:
        """What to ask the registry for: the digest, else the tag, else `latest`."""
        return self.digest or self.tag or "latest"

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.repository}{tag}{digest}"


def _split_tag(text: str) -> tuple[str, str | None]:
    """A colon after the last slash starts the tag; one before it belongs to the host's port."""
    head, slash, last = text.rpartition("/")
    name, colon, tag = last.partition(":")
    return head + slash + name, tag if colon else None


def _split_host(name: str) -> tuple[str, str]:
    """The first component is a host if it could not be a component of a path, or is localhost."""
    first, slash, path = name.partition("/")
    if not slash:
        return DOCKER_HUB, f"library/{name}"
    if not (first.lower() in ("", "localhost") or any(c in first for c in ".:[")):
        return DOCKER_HUB, name
    if first.lower() in _DOCKER_HUB_NAMES:
        return DOCKER_HUB, path if "/" in path else f"library/{path}"
    return first, path


def check_host(text: str) -> str:
    """`host[:port]` in lower case, Docker Hub's under its one name; raises `DefinitionError`."""
    if not isinstance(text, str) or not text:
        raise DefinitionError("a registry's host is empty; expected host or host:port")
    if "://" in text or "/" in text:
        raise DefinitionError(f"registry {text!r:.100} must be host or host:port, without a scheme and a path")
    host, port = text.lower(), ""
    if host.startswith("["):
        host, bracket, port = host.partition("]")
        _check_ipv6(host[1:] if bracket else "", text)
        host += bracket
    else:
        host, colon, port = host.partition(":")
        port = colon + port
        if len(host) > 253 or not _HOST.fullmatch(host):
            raise DefinitionError(f"registry host {text!r:.100} is not a host name or address, with or without a port")
    if port and not (port[0] == ":" and _PORT.fullmatch(port[1:]) and 0 < int(port[1:]) < 65536):
        raise DefinitionError(f"registry host {text!r:.100} has a wrong port; expected :1 to :65535")
    return DOCKER_HUB if host + port in _DOCKER_HUB_NAMES else host + port


def _check_ipv6(address: str, text: str) -> None:
    try:
        ipaddress.IPv6Address(address)
    except ValueError:
        raise DefinitionError(f"registry host {text!r:.100} has no valid IPv6 address in brackets") from None
    if "%" in address:
        raise DefinitionError(f"registry host {text!r:.100} must not have a zone in its IPv6 address")


def check_path(text: str) -> str:
    """A repository's path by the specification's grammar, at most 255 characters; raises `DefinitionError`."""
    if not isinstance(text, str) or not text:
        raise DefinitionError("a repository path is empty; expected something like team/image")
    if len(text) > PATH_LIMIT:
        raise DefinitionError(
            f"repository path {text!r:.60}… has {len(text)} characters; at most {PATH_LIMIT} are allowed"
        )
    if not _PATH.fullmatch(text):
        why = (
            "use lower case"
            if text != text.lower()
            else "allowed are a-z, 0-9 and single . _ - or __ inside, between /"
        )
        raise DefinitionError(f"repository path {text!r} is not allowed: {why}")
    return text


def check_tag(text: str) -> str:
    """A tag by the specification's grammar; raises `DefinitionError`."""
    if not isinstance(text, str) or not _TAG.fullmatch(text):
        raise DefinitionError(
            f"tag {text!r:.150} is not allowed: 1 to 128 of a-z, A-Z, 0-9, _ . -, not starting with . or -"
        )
    return text


def check_reference(text: str) -> str:
    """What a manifest is asked for by: a digest if there is a colon, else a tag; raises `DefinitionError`."""
    if isinstance(text, str) and ":" in text:
        return _check_digest(text, text)
    return check_tag(text)


def _check_digest(digest: str, text: str) -> str:
    try:
        return digests.check(digest)
    except ImageError as error:
        raise DefinitionError(f"the digest in {text!r:.200} is wrong: {error}") from None


def api_host(host: str) -> str:
    """The host that answers the registry API for `host`: itself, but for Docker Hub."""
    return _DOCKER_HUB_API if host == DOCKER_HUB else host


def is_loopback(host: str) -> bool:
    """Whether `host[:port]` is this machine by its name: localhost, 127.0.0.0/8 or [::1]."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    if name.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False

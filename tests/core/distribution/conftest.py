"""A registry that wants tokens, with its token server. The open and the basic registry are the whole project's."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from itertools import count

import pytest

from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.descriptor import LAYER_TAR, Descriptor
from tests.core.distribution.odd import serve
from tests.core.distribution.tokens import ISSUER, SERVICE, TokenServer, make_key
from tests.support.registry import start_registry
from tests.support.session import Session, end

_numbers = count()


@dataclass
class TokenRegistry:
    """A running registry and the server of its tokens."""

    address: str
    tokens: TokenServer


@pytest.fixture
async def token_registry(test_session: Session, worker_id: str) -> AsyncIterator[TokenRegistry]:
    """An empty docker-registry that trusts a token server in this process."""
    name = f"registry-token-{worker_id}-{next(_numbers)}"
    keys = test_session.folder / f"{name}-keys"
    keys.mkdir()
    make_key(keys)
    server = TokenServer(keys)
    async with serve(server.answer) as odd:
        extra = (
            f"auth: {{token: {{realm: 'http://{odd.address}/token', service: '{SERVICE}', issuer: '{ISSUER}', "
            f"rootcertbundle: '{keys / 'token.crt'}'}}}}\n"
        )
        registry = start_registry(test_session, name, extra=extra)
        yield TokenRegistry(registry.address, server)
        end(registry.pid)


@pytest.fixture
def blob() -> Callable[[bytes], Descriptor]:
    """The descriptor of some bytes as a layer."""
    return lambda content: Descriptor(LAYER_TAR, digests.of(content), len(content))

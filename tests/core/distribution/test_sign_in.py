"""Signing in to real registries: basic authentication and tokens."""

import asyncio
import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from prefect_environments.core.distribution.credentials import Credentials, DockerConfig
from prefect_environments.core.distribution.registry import Registry
from prefect_environments.core.errors import RegistryAuthError
from prefect_environments.core.oci.descriptor import Descriptor
from prefect_environments.core.oci.repository import Traffic
from tests.core.distribution.conftest import TokenRegistry
from tests.core.distribution.test_registry import path, put_image
from tests.core.distribution.tokens import IDENTITY, PASSWORD, USER
from tests.support.registry import Registry as Running

Blob = Callable[[bytes], Descriptor]
TESS = Credentials(USER, PASSWORD)


@dataclass
class Remembering:
    """A source that notes who asked."""

    found: Credentials | None
    asked: list[str] = field(default_factory=list)

    async def get(self, host: str) -> Credentials | None:
        self.asked.append(host)
        return self.found


async def test_basic_credentials_are_sent_after_the_registry_asked(basic_registry: Running) -> None:
    credentials = Credentials(basic_registry.username, basic_registry.password)
    async with Registry(basic_registry.address, credentials=credentials) as registry:
        repository = registry.repository(path())
        assert await repository.find_manifest("t") is None
        assert registry.traffic == Traffic(requests=2)
        assert await repository.find_manifest("t") is None
        assert registry.traffic == Traffic(requests=3)
        stored = await put_image(repository, "t")
        assert await repository.find_manifest("t") == stored
        await registry.ping()


async def test_wrong_or_missing_credentials_are_an_error_and_never_a_no(basic_registry: Running) -> None:
    wrong = Credentials(basic_registry.username, "wrong-word-91")
    async with Registry(basic_registry.address, credentials=wrong) as registry:
        for call in (registry.repository("a").find_manifest("t"), registry.repository("a").tags(), registry.ping()):
            with pytest.raises(RegistryAuthError, match=f"User '{basic_registry.username}'") as caught:
                await call
            assert "wrong-word-91" not in str(caught.value) and caught.value.status == 401
    async with Registry(basic_registry.address) as registry:
        with pytest.raises(RegistryAuthError, match="No credentials"):
            await registry.repository("a").find_manifest("t")


async def test_a_source_is_asked_once_and_only_if_the_registry_wants_a_sign_in(
    basic_registry: Running, open_registry: Running
) -> None:
    source = Remembering(Credentials(basic_registry.username, basic_registry.password))
    async with Registry(open_registry.address, credentials=source) as registry:
        await registry.repository("a").find_manifest("t")
    assert source.asked == []
    async with Registry(basic_registry.address, credentials=source) as registry:
        await asyncio.gather(*(registry.repository("a").find_manifest("t") for _ in range(5)))
    assert source.asked == [basic_registry.address]


async def test_what_docker_login_stored_opens_the_registry(basic_registry: Running, tmp_path: Path) -> None:
    auth = base64.b64encode(f"{basic_registry.username}:{basic_registry.password}".encode()).decode()
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"auths": {basic_registry.address: {"auth": auth}}}))
    async with Registry(basic_registry.address, credentials=DockerConfig(files=(file,))) as registry:
        await registry.ping()


async def test_a_cold_check_costs_two_requests_and_a_token(token_registry: TokenRegistry) -> None:
    async with Registry(token_registry.address, credentials=TESS) as registry:
        assert await registry.repository("a").find_manifest("t") is None
        assert registry.traffic == Traffic(requests=2, token_requests=1)
        assert await registry.repository("a").find_manifest("t") is None
        assert registry.traffic == Traffic(requests=3, token_requests=1)


async def test_pushing_asks_for_one_token_with_pull_and_push(token_registry: TokenRegistry, blob: Blob) -> None:
    async with Registry(token_registry.address, credentials=TESS) as registry:
        repository = registry.repository("a/b")
        contents = [bytes([n]) * 1000 for n in range(20)]
        assert all(await asyncio.gather(*(repository.write_blob(blob(c), c) for c in contents)))
        stored = await put_image(repository, "t")
        assert await repository.find_manifest("t") == stored
    assert token_registry.tokens.asked == [("GET", "repository:a/b:pull,push")]


async def test_an_identity_token_goes_by_post(token_registry: TokenRegistry) -> None:
    async with Registry(token_registry.address, credentials=Credentials("", "", IDENTITY)) as registry:
        await put_image(registry.repository("a/b"), "t")
    assert {method for method, _ in token_registry.tokens.asked} == {"POST"}


async def test_a_token_server_without_get_is_asked_by_post(token_registry: TokenRegistry) -> None:
    token_registry.tokens.methods = frozenset({"POST"})
    async with Registry(token_registry.address, credentials=TESS) as registry:
        await put_image(registry.repository("a/b"), "t")
    assert [method for method, _ in token_registry.tokens.asked][:2] == ["GET", "POST"]


async def test_a_token_that_ends_early_is_renewed_in_the_middle_of_a_push(
    token_registry: TokenRegistry, blob: Blob
) -> None:
    # The registry allows a minute of clock skew: these tokens end while the server says they live on.
    token_registry.tokens.valid_for = -58
    async with Registry(token_registry.address, credentials=TESS) as registry:
        repository = registry.repository("a/b")
        assert await repository.write_blob(blob(b"one"), b"one") is True
        await asyncio.sleep(3)
        assert await repository.write_blob(blob(b"two"), b"two") is True
    assert len(token_registry.tokens.asked) == 2


async def test_nobody_may_read_but_not_write(token_registry: TokenRegistry, blob: Blob) -> None:
    async with Registry(token_registry.address) as registry:
        repository = registry.repository("a/b")
        assert await repository.find_manifest("t") is None
        with pytest.raises(RegistryAuthError, match=r"No credentials.*repository:a/b:pull,push"):
            await repository.write_blob(blob(b"one"), b"one")


async def test_a_wrong_password_is_told_by_the_token_server(token_registry: TokenRegistry) -> None:
    async with Registry(token_registry.address, credentials=Credentials(USER, "wrong-word-92")) as registry:
        with pytest.raises(RegistryAuthError, match=rf"token server .* '{USER}'") as caught:
            await registry.repository("a").find_manifest("t")
    assert "wrong-word-92" not in str(caught.value)


async def test_a_mount_asks_for_both_repositories(token_registry: TokenRegistry, blob: Blob) -> None:
    async with Registry(token_registry.address, credentials=TESS) as registry:
        await registry.repository("from").write_blob(blob(b"one"), b"one")
        assert await registry.repository("to").mount_blob(blob(b"one"), "from") is True
    assert token_registry.tokens.asked[-1] == ("GET", "repository:from:pull repository:to:pull,push")

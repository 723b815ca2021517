"""Bytes that change on their way: fetched once more from the start, and refused where they stay wrong."""

import hashlib
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from prefect_environments.core.build.fetch import WheelCache
from prefect_environments.core.errors import DigestMismatch, PackageError
from prefect_environments.core.lock.model import LockedPackage
from tests.faults import proxy as p
from tests.faults.conftest import Ground
from tests.faults.parts import NAME, push, settled_leftovers
from tests.faults.proxy import Fault, Rule, proxy_to
from tests.faults.test_pushes import BASE_LAYER, NO_MOUNTS
from tests.support.wheels import make_wheel, serve_index

DAMAGE: dict[str, Fault] = {"changed": p.corrupt, "cut short": p.truncate(1000)}


@pytest.mark.parametrize("damage", DAMAGE)
async def test_a_base_layer_that_was_damaged_once_does_not_end_a_build(damage: str, ground: Ground) -> None:
    """Read once more from the start: the image is the one that it always is."""
    rules = [NO_MOUNTS, Rule(BASE_LAYER, DAMAGE[damage], 1, 1)]
    async with proxy_to(ground.registry.address, *rules) as proxy:
        plan, workspace = ground.at(proxy.address)
        record = await push(plan, workspace, ground.folder / "cache")
        assert len([hit for hit in proxy.hits if hit.startswith("GET")]) == 1
    assert (record.digest, record.version) == (plan.digest, 1)
    assert await settled_leftovers(ground.folder) == []


async def test_a_base_layer_that_stays_damaged_is_asked_for_twice_and_refused(ground: Ground) -> None:
    async with proxy_to(ground.registry.address, NO_MOUNTS, Rule(BASE_LAYER, p.corrupt, None, 1)) as proxy:
        plan, workspace = ground.at(proxy.address)
        with pytest.raises(DigestMismatch, match=r"download of blob .*wrong bytes"):
            await push(plan, workspace, ground.folder / "cache")
        asked = [hit for hit in proxy.hits if hit.startswith("GET")]
        assert max(asked.count(hit) for hit in asked) == 2
    assert await workspace.versions.versions(NAME) == []
    assert await settled_leftovers(ground.folder) == []


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("times", [1, None])
async def test_a_wheel_that_was_damaged_is_fetched_once_more_past_caches(
    damage: str, times: int | None, tmp_path: Path
) -> None:
    """The second request says no-cache, since a proxy may have kept the damaged file; a third one is not made."""
    wheel = make_wheel(tmp_path / "index", "demo", "1.0", {"demo.bin": bytes(range(256)) * 200}, compress=False)
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    with serve_index(tmp_path / "index") as index:
        rule = Rule(r"\.whl", DAMAGE[damage], times)
        async with (
            proxy_to(urlsplit(index.url).netloc, rule) as proxy,
            WheelCache(tmp_path / "cache") as cache,
        ):
            address = f"http://{proxy.address}/files/{wheel.name}"
            package = LockedPackage("demo", "1.0", wheel.name, sha256, wheel.stat().st_size, address)
            if times:
                assert (await cache.get(package)).read_bytes() == wheel.read_bytes()
            else:
                with pytest.raises(PackageError, match=r"demo-1\.0-py3-none-any\.whl (is refused|has 1000 bytes)"):
                    await cache.get(package)
            assert [headers.get("cache-control") for headers in proxy.seen] == [None, "no-cache"]
            assert cache.has(package) is bool(times)
    assert await settled_leftovers(tmp_path) == []

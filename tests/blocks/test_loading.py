"""Blocks and work pools where the Prefect API hands nothing out."""

import re
from collections.abc import Iterable, Iterator

import pytest
from aiohttp import web
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from prefect_environments.blocks import PackageIndexCredentials
from prefect_environments.blocks.loading import check_work_pool, load_block
from prefect_environments.cli.app import run
from prefect_environments.core.errors import DefinitionError, VersionError
from tests.support.azure.server import StandIn


class Refusing(StandIn):
    """An API for others: whoever asks lacks the permission."""

    def routes(self) -> Iterable[web.RouteDef]:
        async def refuse(request: web.Request) -> web.Response:
            return web.json_response({"detail": "Forbidden"}, status=403)

        return [web.route("*", "/{path:.*}", refuse)]


@pytest.fixture(params=["nobody listens", "refuses"])
def told(request: pytest.FixtureRequest) -> Iterator[str]:
    """What an error should say of the API that is set."""
    with Refusing() as refusing:
        silent = request.param == "nobody listens"
        url = "http://127.0.0.1:9/api" if silent else f"{refusing.url}/api"
        with temporary_settings({PREFECT_API_URL: url, PREFECT_CLIENT_MAX_RETRIES: 0}):
            yield r"did not answer \(ConnectError\)" if silent else "answered with HTTP 403"


async def test_an_api_that_hands_no_block_out_is_no_wrong_input(told: str) -> None:
    """Who named the block may well have named the right one."""
    missing = DefinitionError("there is no such block")
    with pytest.raises(VersionError, match=rf"block 'feed' cannot be read, as the Prefect API {told}; check PREFECT_"):
        await load_block(PackageIndexCredentials, "feed", missing)


async def test_a_check_tells_the_same_of_a_work_pool(told: str) -> None:
    found = await check_work_pool("gpus")
    assert not found.ok and re.search(told, found.found)


def test_the_command_line_ends_as_for_any_service_that_is_not_there(
    told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["list", "--workspace", "team", "--json", "--quiet"]) == 1
    assert re.search(told, capsys.readouterr().out)

"""The engine's classic builder, for where no docker command speaks BuildKit. It has no mounts, so no build secrets.

The images of its steps stay in the engine, untagged and without our label; `leftovers` tells which are a build's.
"""

import asyncio
import base64
import json
import re
import threading
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, suppress
from typing import Any, BinaryIO

from prefect_environments.core.build.docker.classic_log import ClassicReader, StepEnd
from prefect_environments.core.build.docker.client_config import registry_key
from prefect_environments.core.build.docker.engine import LABEL, Engine, is_untagged
from prefect_environments.core.build.docker.inputs import BuildInputs
from prefect_environments.core.distribution.credentials import Credentials
from prefect_environments.core.errors import EngineUnavailable

_NEEDS_BUILDKIT = re.compile(
    r"requires BuildKit|unknown flag: (?:exclude|link|mount|network|parents|security)", re.IGNORECASE
)
_END = 15.0  # seconds for the engine to stop a build whose client went away
_CHUNK = 1024 * 1024


async def build(
    engine: Engine,
    inputs: BuildInputs,
    context: BinaryIO,
    reader: ClassicReader,
    *,
    logins: Mapping[str, Credentials],
    proxies: Mapping[str, str],
    build_id: str,
    network: str | None,
    pull: bool,
) -> str:
    """Build what `inputs` say with the packed `context`; gives the image's id. `reader` learns what was made.

    Raises `BuildError`, and `EngineUnavailable` for a Dockerfile that needs BuildKit.
    """
    stream = _Stream(engine, context, _parameters(inputs, proxies, build_id, network, pull), _login_header(logins))
    async with aclosing(stream.messages()) as messages:
        async for message in messages:
            reader.read(message)
    reader.end()
    if reader.log.has_failed() or not reader.image:
        error = reader.log.error()
        raise EngineUnavailable(f"{error}\n{_ADVICE}") if _NEEDS_BUILDKIT.search(str(error)) else error
    return reader.image


_ADVICE = (
    "The engine's classic builder was used, and this Dockerfile needs BuildKit: install a docker command with the "
    "buildx plugin where this runs"
)


def proxies(config: Mapping[str, Any], address: str) -> dict[str, str]:
    """The proxy variables that the user's configuration gives to every build, as the docker command does."""
    from docker.utils.proxy import ProxyConfig  # noqa: PLC0415

    known = config.get("proxies") or {}
    return dict(ProxyConfig.from_dict(known.get(address, known.get("default", {}))).get_environment())


def leftovers(engine: Engine, reader: ClassicReader) -> list[str]:
    """Stop what still runs of a build, and give the images that only it made, children first."""
    container = reader.container
    reader.end()
    with engine.client() as api:
        if container:
            _remove_container(api, container)
        ours = made_images(api, reader.ends)
        late = [image["Id"] for image in api.images(all=True) if image.get("ParentId") in ours and is_untagged(image)]
    return list(dict.fromkeys([*reversed(late), *reversed(ours)]))


def made_images(api: Any, ends: list[StepEnd]) -> list[str]:
    """Full ids of the untagged images of this build, each one a child of the step before it; parents first."""
    from docker.errors import APIError  # noqa: PLC0415

    chain, ours = set(), []
    for end in ends:
        if not end.image:
            chain.add("")
            continue
        with suppress(APIError):  # removed by somebody else
            found = api.inspect_image(end.image)
            if end.made and found.get("Parent", "") in chain and is_untagged(found):
                ours.append(str(found["Id"]))
            chain.add(str(found["Id"]))
    return ours


def _remove_container(api: Any, container: str) -> None:
    """Wait until the engine removed the step's container itself, as it does when its client goes; else do it."""
    from docker.errors import APIError, NotFound  # noqa: PLC0415

    deadline = time.monotonic() + _END
    with suppress(NotFound):
        while time.monotonic() < deadline:
            api.inspect_container(container)
            time.sleep(0.1)
        with suppress(APIError):
            api.remove_container(container, force=True)


def _parameters(
    inputs: BuildInputs, proxies: Mapping[str, str], build_id: str, network: str | None, pull: bool
) -> dict[str, str]:
    """The query of `POST /build` (Engine API, "Build an image")."""
    given: dict[str, str | None] = {
        "dockerfile": inputs.dockerfile_path,
        "buildargs": json.dumps({**proxies, **inputs.arguments}),
        "labels": json.dumps({LABEL: build_id}),
        "target": inputs.target,
        "platform": str(inputs.platform),
        "networkmode": network,
        "pull": "1" if pull else None,
        "rm": "1",
        "forcerm": "1",
    }
    return {name: value for name, value in given.items() if value}


def _login_header(logins: Mapping[str, Credentials]) -> dict[str, str]:
    known = {
        registry_key(host): {"identitytoken": found.identity_token}
        if found.identity_token
        else {"username": found.username, "password": found.password}
        for host, found in logins.items()
    }
    return {"X-Registry-Config": base64.urlsafe_b64encode(json.dumps(known).encode()).decode()} if known else {}


class _Stream:
    """One request to build, in a thread; leaving the iteration closes the connection, and so stops the build.

    The request is made by hand, because the docker package's own `build` keeps the connection to itself and would
    send every login of the user to the engine.
    """

    def __init__(self, engine: Engine, context: BinaryIO, query: Mapping[str, str], header: Mapping[str, str]) -> None:
        self._engine = engine
        self._context = context
        self._query = query
        self._header = header
        self._stopped = threading.Event()
        self._response: Any = None

    async def messages(self) -> AsyncGenerator[dict[str, Any], None]:
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[dict[str, Any] | Exception | None] = asyncio.Queue()

        def work() -> None:
            try:
                for message in self._read():
                    loop.call_soon_threadsafe(queue.put_nowait, message)
                loop.call_soon_threadsafe(queue.put_nowait, None)
            except Exception as error:
                loop.call_soon_threadsafe(queue.put_nowait, error)

        thread = asyncio.ensure_future(asyncio.to_thread(work))
        try:
            while (message := await queue.get()) is not None:
                if isinstance(message, Exception):
                    raise message
                yield message
        finally:
            self._stop()
            await asyncio.wait([thread], timeout=_END)

    def _read(self) -> Iterator[dict[str, Any]]:
        with self._engine.client(None) as api:
            headers = {"Content-Type": "application/x-tar", **self._header}
            url = f"{api.base_url}/v{api.api_version}/build"
            response = api.post(
                url, data=self._chunks(), params=self._query, headers=headers, stream=True, timeout=(10, None)
            )
            self._response = response
            if self._stopped.is_set():
                self._close()
            if response.status_code >= 400:
                yield {"error": _refusal(response)}
                return
            for line in response.iter_lines(chunk_size=_CHUNK):
                if line:
                    yield json.loads(line)

    def _chunks(self) -> Iterator[bytes]:
        while chunk := self._context.read(_CHUNK):
            if self._stopped.is_set():
                raise EngineUnavailable("the build was cancelled while its context was sent")
            yield chunk

    def _stop(self) -> None:
        self._stopped.set()
        if self._response is not None:
            self._close()

    def _close(self) -> None:
        from docker.types import CancellableStream  # noqa: PLC0415

        with suppress(Exception):  # closed already, or a connection without a socket (ssh)
            CancellableStream(iter(()), self._response).close()
        with suppress(Exception):
            self._response.close()


def _refusal(response: Any) -> str:
    try:
        return str(response.json()["message"])
    except (ValueError, KeyError, TypeError):
        return f"the engine answered with status {response.status_code}"

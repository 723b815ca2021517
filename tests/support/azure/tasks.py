"""A stand-in for ACR Tasks: Azure Resource Manager's calls for runs, the storage behind them, and the agents.

An agent is an async function of a run. `engine_agent` really builds, with a Docker engine, as ACR's open-source agent
(Azure/acr-builder) does; tests bring others, which fail, hang or push what is ready.
"""

import asyncio
import base64
import datetime
import io
import json
import os
import re
import shlex
import ssl
import tarfile
import tempfile
import uuid
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from prefect_environments.core.build.docker.buildkit import find_command
from tests.support.azure.entra import App, Entra
from tests.support.azure.server import StandIn
from tests.support.engine import DockerEngine

SUBSCRIPTION = "11111111-2222-3333-4444-555555555555"
GROUP = "ml-team"
REGISTRY = "teamregistry"
_ENDED = ("Succeeded", "Failed", "Canceled", "Error", "Timeout")
_SIGNATURE = "sig"


class Refused(Exception):
    """Azure Resource Manager's answer to a request that it does not grant."""

    def __init__(self, status: int, code: str, text: str) -> None:
        super().__init__(text)
        self.status, self.code = status, code


@dataclass
class Run:
    """One run; agents write its log and end it."""

    id: str
    request: dict[str, Any]
    context: bytes
    status: str = "Queued"
    error: str = ""
    images: dict[str, str] = field(default_factory=dict)
    """Digests by `repository:tag`."""
    log: bytearray | None = None
    """`None`: no agent has begun to write."""
    whole: bool = False
    work: "asyncio.Task[None] | None" = None

    def say(self, *lines: str, end: str = "\n") -> None:
        """Write lines to the log."""
        self.log = bytearray() if self.log is None else self.log
        self.log += "".join(f"{line}{end}" for line in lines).encode()

    def agent_says(self, words: str) -> None:
        """A line of the agent's own, with the time."""
        self.say(f"{datetime.datetime.now(datetime.UTC):%Y/%m/%d %H:%M:%S} {words}")

    def end(self, status: str, error: str = "") -> None:
        """The run ends, if it has not."""
        if self.status in _ENDED:
            return
        words = {"Succeeded": "was successful after 3s", "Canceled": "was cancelled", "Timeout": "timed out"}
        self.status, self.error = status, error
        self.say("", f"Run ID: {self.id} {words.get(status, f'failed after 3s. Error: {error}')}", end="\r\n")
        self.whole = True

    @property
    def files(self) -> dict[str, bytes]:
        """The files of the packed context."""
        with tarfile.open(fileobj=io.BytesIO(self.context), mode="r:gz") as archive:
            members = [member for member in archive if member.isfile()]
            return {member.name: archive.extractfile(member).read() for member in members}  # type: ignore[union-attr]

    @property
    def task(self) -> dict[str, Any]:
        """What an encoded task says; its YAML is JSON."""
        found: dict[str, Any] = json.loads(base64.b64decode(self.request["encodedTaskContent"]))
        return found

    @property
    def image(self) -> str:
        """`repository:tag` that is to be pushed."""
        if "imageNames" in self.request:
            return str(self.request["imageNames"][0])
        return str(self.task["steps"][1]["push"][0]).removeprefix("{{.Run.Registry}}/")

    def to_json(self) -> dict[str, Any]:
        images = [{"registry": REGISTRY, "repository": n.rpartition(":")[0], "tag": n.rpartition(":")[2], "digest": d}
                  for n, d in self.images.items()]  # fmt: skip
        known = {"runId": self.id, "status": self.status, "runType": "QuickBuild", "provisioningState": "Succeeded"}
        known |= {"runErrorMessage": self.error} if self.error else {}
        kind = "Microsoft.ContainerRegistry/registries/runs"
        return {
            "id": f"/runs/{self.id}",
            "name": self.id,
            "type": kind,
            "properties": {**known, "outputImages": images},
        }


Agent = Callable[[Run], Awaitable[None]]


class TasksServer(StandIn):
    """Azure Resource Manager for one registry, and the storage; both https. `agent` does what the next runs ask for."""

    def __init__(self, entra: Entra, tls: ssl.SSLContext, agent: Agent) -> None:
        super().__init__(tls)
        self.entra, self.agent = entra, agent
        self.allowed: set[str] = set()
        """Client ids that may run tasks."""
        self.runs: dict[str, Run] = {}
        self.uploads: dict[str, bytes] = {}
        self.signature = uuid.uuid4().hex
        """What the storage's addresses are signed with."""
        self.storage_is_closed = False

    def resume(self) -> None:
        super().resume()
        self.entra.resources.add(self.url)

    def grant(self, app: App) -> None:
        self.allowed.add(app.client_id)

    @property
    def last(self) -> Run:
        """The run that was scheduled last."""
        return list(self.runs.values())[-1]

    def routes(self) -> Iterable[web.RouteDef]:
        registry = (
            "/subscriptions/{subscription}/resourceGroups/{group}/providers/"
            "Microsoft.ContainerRegistry/registries/{registry}"
        )
        return [
            web.post(f"{registry}/listBuildSourceUploadUrl", self._checked(self._source)),
            web.post(f"{registry}/scheduleRun", self._checked(self._schedule)),
            web.get(f"{registry}/runs", self._checked(self._list)),
            web.get(f"{registry}/runs/{{run}}", self._checked(self._get)),
            web.post(f"{registry}/runs/{{run}}/cancel", self._checked(self._cancel)),
            web.post(f"{registry}/runs/{{run}}/listLogSasUrl", self._checked(self._log_address)),
            web.put("/storage/source/{path:.*}", self._put_blob),
            web.route("*", "/storage/logs/{run}", self._log),
        ]

    def _checked(self, answer: Callable[[web.Request], Awaitable[Any]]) -> Any:
        async def handle(request: web.Request) -> web.Response:
            try:
                self._check(request)
                return web.json_response(await answer(request))
            except Refused as refused:
                error = {"code": refused.code, "message": str(refused)}
                return web.json_response({"error": error}, status=refused.status)

        return handle

    def _check(self, request: web.Request) -> None:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        claims = self.entra.claims(token, self.url) if scheme == "Bearer" else None
        if claims is None:
            raise Refused(401, "InvalidAuthenticationToken", "The access token is invalid.")
        where = request.match_info
        if claims["appid"] not in self.allowed:
            action = "/".join(request.path.split("/")[9:])
            text = (
                f"The client '{claims['appid']}' with object id '{claims['oid']}' does not have authorization to "
                f"perform action 'Microsoft.ContainerRegistry/registries/{action}/action' over scope '{request.path}'."
            )
            raise Refused(403, "AuthorizationFailed", text)
        if (where["subscription"], where["group"], where["registry"]) != (SUBSCRIPTION, GROUP, REGISTRY):
            raise Refused(404, "ResourceNotFound", f"The Resource '{where['registry']}' was not found.")
        if "api-version" not in request.query:
            raise Refused(400, "MissingApiVersionParameter", "The api-version query parameter is required.")

    async def _source(self, request: web.Request) -> Any:
        path = f"{uuid.uuid4().hex}.tar.gz"
        return {"uploadUrl": self._signed(f"/storage/source/{path}", "rw"), "relativePath": f"source/{path}"}

    async def _schedule(self, request: web.Request) -> Any:
        asked = await request.json()
        needed = {"DockerBuildRequest": ("dockerFilePath",), "EncodedTaskRunRequest": ("encodedTaskContent",)}
        if asked.get("type") not in needed or any(name not in asked for name in (*needed[asked["type"]], "platform")):
            raise Refused(400, "InvalidRequestContent", f"the run request of type {asked.get('type')} is incomplete")
        if not 300 <= asked.get("timeout", 3600) <= 28800:
            raise Refused(400, "InvalidTimeout", "The timeout is 300 to 28800 seconds.")
        if asked.get("sourceLocation") not in self.uploads:
            raise Refused(400, "SourceNotFound", "The source location was not found.")
        run = Run(f"ca{len(self.runs) + 1}", asked, self.uploads[asked["sourceLocation"]])
        self.runs[run.id] = run
        run.work = asyncio.create_task(self._work(run))
        return run.to_json()

    async def _work(self, run: Run) -> None:
        await asyncio.sleep(0.05)  # an agent is found
        run.status = "Running"
        try:
            await self.agent(run)
        except Exception as error:  # the test then fails with this as the run's error
            run.end("Error", repr(error))

    async def _list(self, request: web.Request) -> Any:
        return {"value": [run.to_json() for run in reversed(self.runs.values())]}

    def _of(self, request: web.Request) -> Run:
        if request.match_info["run"] not in self.runs:
            raise Refused(404, "RunNotFound", f"The run '{request.match_info['run']}' was not found.")
        return self.runs[request.match_info["run"]]

    async def _get(self, request: web.Request) -> Any:
        return self._of(request).to_json()

    async def _cancel(self, request: web.Request) -> Any:
        run = self._of(request)
        if run.work is not None:
            run.work.cancel()
        run.end("Canceled")
        return {}

    async def _log_address(self, request: web.Request) -> Any:
        return {"logLink": self._signed(f"/storage/logs/{self._of(request).id}", "r")}

    def _signed(self, path: str, permissions: str) -> str:
        return f"{self.url}{path}?sv=2019-12-12&sp={permissions}&{_SIGNATURE}={self.signature}%2B%3D"

    def _is_signed(self, request: web.Request) -> bool:
        return not self.storage_is_closed and request.query.get(_SIGNATURE) == f"{self.signature}+="

    async def _put_blob(self, request: web.Request) -> web.Response:
        if not self._is_signed(request) or "Authorization" in request.headers:
            return web.Response(status=403, reason="AuthenticationFailed")
        if request.headers.get("x-ms-blob-type") != "BlockBlob" or request.content_length is None:
            return web.Response(status=400, reason="MissingRequiredHeader")
        self.uploads[f"source/{request.match_info['path']}"] = await request.read()
        return web.Response(status=201)

    async def _log(self, request: web.Request) -> web.Response:
        if not self._is_signed(request):
            return web.Response(status=403, reason="AuthenticationFailed")
        run = self.runs.get(request.match_info["run"])
        if run is None or run.log is None:
            return web.Response(status=404, reason="BlobNotFound")
        headers = {"x-ms-blob-type": "AppendBlob"} | ({"x-ms-meta-Complete": run.status} if run.whole else {})
        if request.method == "HEAD":
            return web.Response(headers={**headers, "Content-Length": str(len(run.log))})
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        if found is None:
            return web.Response(headers=headers, body=bytes(run.log))
        start, end = int(found[1]), min(int(found[2] or len(run.log)) + 1, len(run.log))
        if start >= len(run.log):
            return web.Response(status=416, reason="InvalidRange")
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(run.log)}"
        return web.Response(status=206, headers=headers, body=bytes(run.log[start:end]))


def engine_agent(engine: DockerEngine, login_server: str) -> Agent:
    """Builds with a Docker engine and pushes to `login_server`, in a shell, as the agents of ACR Tasks do."""

    async def work(run: Run) -> None:
        run.agent_says("Using acb_vol as the home volume")
        with tempfile.TemporaryDirectory() as folder:
            with tarfile.open(fileobj=io.BytesIO(run.context), mode="r:gz") as archive:
                archive.extractall(folder, filter="data")
            name = f"{login_server}/{run.image}"
            environment = {**os.environ, **engine.environment}
            words, timed = await _build_command(run, name, environment)
            run.agent_says("Executing step ID: build. Timeout(sec): 28800, Working directory: '', Network: ''")
            run.agent_says("Launching container with name: build")
            command = f"{words} --network=host --pull {timed}"
            status, _ = await _shell(command, run, folder, environment)
            if status:
                run.agent_says("Container failed during run: build. No retries remaining.")
                run.say(f"failed to run step ID: build: exit status {status}")
                run.end("Failed", f"failed during run, err: exit status {status}")
                return
            run.agent_says("Executing step ID: push. Timeout(sec): 1800, Working directory: '', Network: ''")
            run.agent_says(f"Pushing image: {name}, attempt 1")
            status, said = await _shell(f"docker push {name}; docker rmi {name} >/dev/null", run, folder, environment)
            digest = re.search(r"digest: (sha256:[0-9a-f]{64})", said)
            if digest is None:
                run.end("Failed", "failed to push images successfully")
                return
            run.images[run.image] = digest[1]
            run.end("Succeeded")

    return work


async def _build_command(run: Run, name: str, environment: dict[str, str]) -> tuple[str, str]:
    """The words of the command, and its options with the context, of a request of either kind."""
    if run.request["type"] == "EncodedTaskRunRequest":
        step = run.task["steps"][0]
        environment |= dict(line.split("=", 1) for line in step["env"])
        found = await find_command(environment)
        assert found is not None, "no docker command here speaks BuildKit"
        return shlex.join(found.words), step["build"].replace("{{.Run.Registry}}", name.partition("/")[0])
    environment["DOCKER_BUILDKIT"] = "0"
    asked = run.request
    options = ["-f", asked["dockerFilePath"], "-t", name]
    options += [f"--target={asked['target']}"] if asked.get("target") else []
    for argument in asked["arguments"]:  # as they come: the shell reads them
        options += ["--build-arg", f"{argument['name']}={argument['value']}"]
    return "docker build", " ".join([*options, "."])


async def _shell(command: str, run: Run, folder: str, environment: dict[str, str]) -> tuple[int, str]:
    process = await asyncio.create_subprocess_shell(
        command,
        cwd=folder,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    said = ""
    assert process.stdout is not None
    try:
        async for line in process.stdout:
            said += line.decode(errors="replace")
            run.say(line.decode(errors="replace"), end="")
        return await process.wait(), said
    finally:
        if process.returncode is None:
            process.kill()


def pushing_agent(push: Callable[[str], str]) -> Agent:
    """Has `push` put an image that is ready under `repository:tag` into the registry; it gives the digest."""

    async def work(run: Run) -> None:
        run.agent_says("Executing step ID: build. Timeout(sec): 28800, Working directory: '', Network: ''")
        run.say("Step 1/2 : FROM base", " ---> 0123456789ab", "Step 2/2 : RUN echo made", "made")
        run.images[run.image] = await asyncio.to_thread(push, run.image)
        run.end("Succeeded")

    return work


def folder_of(path: Path, files: dict[str, str]) -> Path:
    """A build context with these files."""
    for name, text in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    return path

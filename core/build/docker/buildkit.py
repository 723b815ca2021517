"""BuildKit through the docker command: the engine's own builder where the command speaks to it."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from prefect_environments.core.build.docker import commands
from prefect_environments.core.build.docker.client_config import ClientFolder
from prefect_environments.core.build.docker.engine import LABEL, Engine
from prefect_environments.core.build.docker.inputs import BuildInputs
from prefect_environments.core.build.docker.log import BuildLog

_NUMBERED = re.compile(r"#(\d+) (.*)", re.DOTALL)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_TIMED = re.compile(r"\d+\.\d+ (.*)", re.DOTALL)
_INTERNAL = "[internal]"
_ENDED_LINE = re.compile(r"(.*)#(\d+) (DONE \d+\.\d+s|CANCELED|ERROR: .*)", re.DOTALL)
"""The last line of a step that printed no line end: its state stands in the same line."""
_END = re.compile(r"(DONE \d|CACHED$|CANCELED$)")
_ERROR = re.compile(r"ERROR:? ?(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class BuildCommand:
    """The beginning of a command line that can build with BuildKit, and the environment for it."""

    words: tuple[str, ...]
    environment: Mapping[str, str]


def client_environment(engine: Engine, folder: Path) -> dict[str, str]:
    """The variables for a docker command that talks to `engine`, with `folder` for its configuration."""
    ours = {
        **engine.environment,
        "DOCKER_CONFIG": str(folder),
        "DOCKER_BUILDKIT": "1",
        "BUILDX_CONFIG": str(folder / "buildx"),
        "BUILDX_NO_DEFAULT_ATTESTATIONS": "1",  # they have the time in them, and make an index of the image
        "BUILDKIT_PROGRESS": "plain",
    }
    # a builder of the user's would be unknown to this configuration, and Prefect's key is nothing to the client
    theirs = {name: value for name, value in os.environ.items() if not name.startswith(("BUILDX_BUILDER", "PREFECT_"))}
    return theirs | ours


async def find_command(environment: Mapping[str, str]) -> BuildCommand | None:
    """A docker command that builds with BuildKit: each one on PATH is asked, by its plugin and by itself."""
    for docker in commands.docker_commands(environment):
        if await commands.answer([docker, "buildx", "version"], environment) is not None:
            return BuildCommand((docker, "buildx", "build", "--load"), environment)
        # a command without the plugin may have BuildKit in it, and shows so only where the engine has it, too
        if "--secret" in (await commands.answer([docker, "build", "--help"], environment) or ""):
            return BuildCommand((docker, "build"), environment)
    return None


async def build(
    command: BuildCommand,
    inputs: BuildInputs,
    context: tuple[Path, Path],
    folder: ClientFolder,
    *,
    build_id: str,
    network: str | None,
    pull: bool,
    log: BuildLog,
) -> str:
    """Build what `inputs` say with `context`, a folder and a Dockerfile; gives the image's id. Raises `BuildError`.

    No secret is in the command line: other users of the machine can read it.
    """
    answer = folder.path / "image-id"
    words = [*command.words, *_options(inputs, folder, build_id, network, pull), f"--iidfile={answer}"]
    words += [f"--file={context[1]}", str(context[0])]
    reader = PlainReader(log)
    async with commands.started(words, command.environment) as process:
        async for line in commands.lines(process):
            reader.read(line)
        status = await process.wait()
    if status != 0 or not answer.exists():
        raise log.error()
    return answer.read_text().strip()


def _options(inputs: BuildInputs, folder: ClientFolder, build_id: str, network: str | None, pull: bool) -> list[str]:
    words = ["--progress=plain", f"--platform={inputs.platform}"]
    words += [f"--label={LABEL}={build_id}"]
    words += [f"--build-arg={name}={value}" for name, value in sorted(inputs.arguments.items())]
    words += [f"--secret=id={name},src={path}" for name, path in folder.secrets.items()]
    words += [f"--target={inputs.target}"] if inputs.target else []
    words += [f"--network={network}"] if network else []
    return [*words, "--pull"] if pull else words


class PlainReader:
    """Reads what BuildKit prints with `--progress=plain`: `#<step> <title | time text | state>`."""

    def __init__(self, log: BuildLog) -> None:
        self._log = log

    def read(self, line: str) -> None:
        found = _NUMBERED.fullmatch(line.rstrip("\r"))
        if found is None:
            # what is no step's: a Dockerfile that cannot be read, an engine that is not there
            self._line("", line)
            return
        key, text = found.groups()
        if not self._log.knows(key):
            self._begin(key, text)
        elif timed := _TIMED.fullmatch(text):
            self._line(key, timed[1])
        elif error := _ERROR.fullmatch(text):
            self._log.failed(key, error[1])
        elif not (text == "..." or _DIGEST.fullmatch(text) or _END.match(text)):
            self._log.detail(text)  # bytes transferred, layers extracted, a title once more

    def _line(self, key: str, text: str) -> None:
        if self._log.has_failed(key):
            self._log.detail(text)  # a failed step's lines come once more
            return
        ended = _ENDED_LINE.fullmatch(text)
        if ended is None or ended[2] != key:
            self._log.line(key, text)
            return
        self._log.line(key, ended[1])
        if error := _ERROR.fullmatch(ended[3]):
            self._log.failed(key, error[1])

    def _begin(self, key: str, title: str) -> None:
        if title.startswith("[") and not title.startswith(_INTERNAL):
            self._log.step(key, title)
        else:
            self._log.note(key, title)

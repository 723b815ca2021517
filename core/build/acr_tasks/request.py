"""What is asked of ACR Tasks, as data (Azure REST API, "Registries - Schedule Run").

A plain Dockerfile is a `DockerBuildRequest`, as `az acr build` sends it, for the agent's classic builder. A Dockerfile
that needs BuildKit is a task of two steps (ACR Tasks YAML reference), because only a task can turn BuildKit on.
"""

import base64
import json
import re
import shlex
from collections.abc import Mapping
from typing import Any

from prefect_environments.core.build.acr_tasks.settings import TasksSettings
from prefect_environments.core.build.docker.client_config import Logins
from prefect_environments.core.build.docker.dockerfile import parse
from prefect_environments.core.build.docker.inputs import BuildInputs
from prefect_environments.core.errors import SpecificationError

BUILD, PUSH = "build", "push"
"""The ids of the steps of a run; the agent's log names them."""

_BUILDKIT_FLAGS = {
    "RUN": ("mount", "network", "security", "device"),
    "COPY": ("link", "chmod", "exclude", "parents"),
    "ADD": ("link", "chmod", "exclude", "checksum", "keep-git-dir", "unpack"),
}
_HEREDOC = re.compile(r"<<-?['\"]?\w")
_PLATFORM = re.compile(r"\b(TARGET|BUILD)(PLATFORM|OS|ARCH|VARIANT)\b")
"""Arguments that only BuildKit sets by itself: the classic builder leaves them empty, without a word."""
_PUSH_SECONDS = 1800
_PLAIN_PATH = re.compile(r"[\w./@+-]+", re.ASCII)


def check(inputs: BuildInputs) -> None:
    """Raise `SpecificationError` for what an agent of ACR Tasks cannot build as it is meant."""
    if inputs.secrets:
        raise SpecificationError(
            f"the build secrets {', '.join(sorted(inputs.secrets))} cannot be handed to ACR Tasks without being "
            "stored: its secret arguments stay in the image's history, and its other ways put the values into commands "
            "on the agent. Build with builder='docker', or install what is private as packages of the environment"
        )
    if not _PLAIN_PATH.fullmatch(inputs.dockerfile_path):
        raise SpecificationError(
            f"dockerfile_path {inputs.dockerfile_path!r:.200}: ACR Tasks finds no Dockerfile whose path has other "
            "characters than ASCII letters, digits and . _ - @ + /; rename it"
        )
    for name, value in {**inputs.arguments, "build_target": inputs.target}.items():
        if "{{" in value or "\n" in value:
            raise SpecificationError(
                f"the build argument {name} has {{{{ or a line break in it, which ACR Tasks would take for a template; "
                "write the value into the Dockerfile as the argument's default, or build with builder='docker'"
            )


def needs_buildkit(dockerfile: str) -> bool:
    """Whether a Dockerfile has what the classic builder refuses or leaves out: mounts, links, here-documents, a syntax
    of its own, the arguments of the platform."""
    found = parse(dockerfile)
    if found.syntax:
        return True
    for instruction in found.instructions:
        if _PLATFORM.search(" ".join((*instruction.flags, instruction.rest))):
            return True
        names = {flag.partition("=")[0].lower() for flag in instruction.flags}
        if names.intersection(f"--{flag}" for flag in _BUILDKIT_FLAGS.get(instruction.name, ())):
            return True
        if instruction.name in _BUILDKIT_FLAGS and _HEREDOC.search(instruction.rest):
            return True
    return False


def build_request(
    inputs: BuildInputs, image: str, source: str, settings: TasksSettings, logins: Logins
) -> dict[str, Any]:
    """The body of the request for one run. `image` is `repository:tag` in the registry, `source` the place of the
    packed context, `logins` are for other registries that the Dockerfile starts from. Raises `SpecificationError`."""
    check(inputs)
    common = {
        "isArchiveEnabled": False,
        "sourceLocation": source,
        "platform": {"os": "Linux", "architecture": inputs.platform.architecture},
        "timeout": settings.timeout,
        "credentials": _credentials(settings, logins),
    }
    if settings.agent_pool:
        common["agentPoolName"] = settings.agent_pool
    if not needs_buildkit(inputs.dockerfile):
        return common | _quick_build(inputs, image)
    task = json.dumps(_task(inputs, image, settings))  # JSON is YAML
    encoded = base64.b64encode(task.encode()).decode()
    return common | {"type": "EncodedTaskRunRequest", "encodedTaskContent": encoded, "values": []}


def _quick_build(inputs: BuildInputs, image: str) -> dict[str, Any]:
    # the agent's shell reads the values
    arguments = [
        {"name": name, "value": shlex.quote(value), "isSecret": False}
        for name, value in sorted(inputs.arguments.items())
    ]
    found = {
        "type": "DockerBuildRequest",
        "imageNames": [image],
        "isPushEnabled": True,
        "noCache": False,
        "dockerFilePath": inputs.dockerfile_path,
        "arguments": arguments,
    }
    return found | ({"target": inputs.target} if inputs.target else {})


def _task(inputs: BuildInputs, image: str, settings: TasksSettings) -> dict[str, Any]:
    name = f"{{{{.Run.Registry}}}}/{image}"
    words = ["-t", name, "-f", inputs.dockerfile_path, f"--platform={inputs.platform}"]
    for argument, value in sorted(inputs.arguments.items()):
        words += ["--build-arg", shlex.quote(f"{argument}={value}")]
    words += ["--target", shlex.quote(inputs.target)] if inputs.target else []
    build = {
        "id": BUILD,
        "build": " ".join([*words, "."]),
        "env": ["DOCKER_BUILDKIT=1", "BUILDKIT_PROGRESS=plain"],
        "timeout": settings.timeout,
    }
    push = {"id": PUSH, "push": [name], "when": [BUILD], "timeout": min(_PUSH_SECONDS, settings.timeout)}
    return {"version": "v1.0.0", "steps": [build, push]}  # from v1.1.0 on, $ would start an alias in values


def _credentials(settings: TasksSettings, logins: Logins) -> dict[str, Any]:
    source: dict[str, str] = {"identity": "[caller]"} if settings.as_caller else {"loginMode": "Default"}
    found: dict[str, Any] = {"sourceRegistry": source}
    if logins:
        found["customRegistries"] = {host: _login(*login) for host, login in sorted(logins.items())}
    return found


def _login(user: str, password: str) -> Mapping[str, Any]:
    return {"userName": {"type": "Opaque", "value": user}, "password": {"type": "Opaque", "value": password}}

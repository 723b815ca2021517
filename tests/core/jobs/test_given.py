"""A job's config as scripts for Azure ML's SDK v1, forms and people write it."""

import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prefect_environments import MpiConfiguration, PyTorchConfiguration, ScriptRunConfig
from prefect_environments.core.errors import DefinitionError, SecretError
from prefect_environments.core.jobs.command import command_of
from prefect_environments.core.jobs.config import EnvironmentName, bytes_of
from prefect_environments.core.jobs.source import check_source
from prefect_environments.core.jobs.variables import resolved
from prefect_environments.core.versions import FolderVersionStore
from tests.core.test_versions import draft
from tests.images.parts import Secrets

COMMIT = "5" * 40


def test_a_call_written_for_sdk_v1_is_taken() -> None:
    """Numbers as arguments, its names of the distribution and the time limit, a target as an object."""
    config = ScriptRunConfig(
        source_directory=Path("src"),
        script="train.py",
        arguments=["--kernel", "linear", "--penalty", 1.0, "--epochs", 3, "--data", Path("a b")],
        compute_target=SimpleNamespace(name="team-pool"),
        distributed_job_config=MpiConfiguration(process_count_per_node=2),
        max_run_duration_seconds=60,
        command=None,
        docker_runtime_config=None,
    )
    assert config.arguments == ("--kernel", "linear", "--penalty", "1.0", "--epochs", "3", "--data", "a b")
    assert (config.source_directory, config.compute_target, config.time_limit_seconds) == ("src", "team-pool", 60)
    assert config.distribution == MpiConfiguration(process_count_per_node=2)
    assert PyTorchConfiguration.model_validate({"process_count": None, "node_count": 2}).world_size == 2


def test_what_a_form_sends_for_empty_fields_is_nothing() -> None:
    fields = dict.fromkeys(ScriptRunConfig.model_fields) | {"script": "train.py"}
    assert ScriptRunConfig(**fields) == ScriptRunConfig(script="train.py")
    assert ScriptRunConfig.model_validate(fields) == ScriptRunConfig(script="train.py")


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"docker_runtime_config": object()}, "give shm_size"),
        ({"run_config": object()}, "give environment"),
        ({"resume_from": object()}, "earlier job's outputs"),
        ({"max_run_duration_seconds": 5, "time_limit_seconds": 6}, "are the same"),
        ({"cpus": math.inf}, "finite"),
        ({"memory": "9" * 400}, "is no size"),
        ({"outputs": "src", "script": "src/train.py"}, "in the outputs folder"),
        ({"bootstrap": "out/boot.sh", "outputs": "out"}, "in the outputs folder"),
        ({"source_directory": "git@git.example.com:team/code.git#main"}, "no full commit id"),
        ({"source_directory": f"--upload-pack=x://git.example.com/c#{COMMIT}"}, "is not fetched"),
        ({"source_directory": f"ext::sh#{COMMIT}"}, "is not fetched"),
    ],
)
def test_what_cannot_be_had_is_told_with_what_to_do(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(DefinitionError, match=told):
        ScriptRunConfig(**{"script": "train.py", **fields})


@pytest.mark.parametrize("text", ["iris:3@", "iris:3@sha256:0", f"iris:{'9' * 5000}", "iris:0", "iris:", "iris:٣"])
def test_a_version_that_is_none_is_wrong_input_in_a_config_and_alone(text: str) -> None:
    for read in (EnvironmentName.parse, lambda text: ScriptRunConfig(script="train.py", environment=text)):
        with pytest.raises(DefinitionError):
            read(text)


async def test_a_versions_record_is_taken_by_its_name_and_digest(tmp_path: Path) -> None:
    record = await FolderVersionStore(tmp_path, "team").register(draft(digest=f"sha256:{'a' * 64}"))
    config = ScriptRunConfig(script="train.py", environment=record)
    assert config.environment == f"{record.name}:{record.version}@{record.digest}"


def test_git_by_ssh_is_written_either_way() -> None:
    for url in ("git@git.example.com:team/code.git", "ssh://git@git.example.com/team/code.git"):
        assert ScriptRunConfig(source_directory=f"{url}#{COMMIT}", script="train.py").is_git
    assert not ScriptRunConfig(source_directory="me@home", script="train.py").is_git


def test_a_name_with_a_dash_in_front_is_no_option(tmp_path: Path) -> None:
    (tmp_path / "-c").write_text("import sys; print('script', sys.argv[1])\n")
    (tmp_path / "-e.sh").write_text("echo prepared\n")
    config = ScriptRunConfig(source_directory=str(tmp_path), script="-c", arguments=("print(1)",), bootstrap="-e.sh")
    check_source(config)
    command = command_of(config, sys.executable)
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "prepared\nscript print(1)\n", done.stderr


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("cat no-such-file 2>/dev/null", ""),
        ("echo one &&echo two", "one\ntwo\n"),
        ("echo one&& echo two", "one\ntwo\n"),
    ],
)
def test_operators_are_found_without_spaces_beside_them(command: str, said: str) -> None:
    words = command_of(ScriptRunConfig(command=command.split()), "python")
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == (said, "")
    for word in ("2>1", ">=3", "<pad>", "&x", "a&b"):
        assert command_of(ScriptRunConfig(command=["echo", word]), "python") == ("echo", word)


def test_half_a_byte_is_no_size() -> None:
    with pytest.raises(DefinitionError):
        bytes_of("0.5")


async def test_variables_that_no_process_can_have_are_refused_before_one_is_started() -> None:
    """Those of an environment, and secrets with what ends a text in C."""
    for name in ("A=B", "", "A\0"):
        with pytest.raises(DefinitionError, match="no name of an environment variable"):
            await resolved({name: "x"}, {}, Secrets())
    with pytest.raises(SecretError, match="NUL character") as caught:
        await resolved({}, {"T": "secret:t"}, Secrets({"t": "planted\0value"}))
    assert "planted" not in str(caught.value)
    assert (await resolved({"a.b": "", "A": "1"}, {"A": "2\n3"}, Secrets()))["A"] == "2\n3"

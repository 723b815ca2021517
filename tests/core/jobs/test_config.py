"""What a job's config takes and refuses, and the words that come of it."""

import pickle
import subprocess
from pathlib import Path
from typing import Any

import pytest

from prefect_environments import Environment, EnvironmentDefinition, ReadyImage, ScriptRunConfig
from prefect_environments.core.errors import DefinitionError, JobFailed, NameNotAllowed, PrefectEnvironmentsError
from prefect_environments.core.jobs.command import command_of
from prefect_environments.core.jobs.config import EnvironmentName, bytes_of

PYTHON = "/opt/env/bin/python"
DIGEST = f"sha256:{'5' * 64}"


def words(**fields: Any) -> tuple[str, ...]:
    return command_of(ScriptRunConfig(**fields), PYTHON)


def printed(folder: Path, **fields: Any) -> str:
    """What a config's command prints, started as a launcher starts it."""
    done = subprocess.run(words(**fields), cwd=folder, capture_output=True, text=True, check=False)
    return f"{done.stdout}{done.stderr}{done.returncode}"


def test_a_script_is_run_by_the_environments_python_with_its_arguments_as_they_are() -> None:
    assert words(script="a/train.py", arguments=("--lr", "0.1 0.2", "$X")) == (
        PYTHON,
        "a/train.py",
        "--lr",
        "0.1 0.2",
        "$X",
    )


def test_a_list_without_operators_is_run_without_a_shell(tmp_path: Path) -> None:
    assert words(command=["python", "train.py", "<pad>", "a b"]) == ("python", "train.py", "<pad>", "a b")
    assert printed(tmp_path, command=["echo", "$HOME", "a  b"]) == "$HOME a  b\n0"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("echo bootstrap && echo 'a  b'", "bootstrap\na  b\n0"),
        (["echo", "bootstrap", "&&", "echo", "train"], "bootstrap\ntrain\n0"),
        (["false", "||", "echo", "$((1+1));", "exit", "3"], "2\n3"),
        (["echo", "a  b", "&&", "echo", "done"], "a  b\ndone\n0"),
        (["echo", "out", ">", "made.txt"], "0"),
        (["echo", "'one", "two'", "|", "tr", "a-z", "A-Z"], "ONE TWO\n0"),
    ],
)
def test_text_and_lists_with_operators_are_run_by_a_shell(command: Any, said: str, tmp_path: Path) -> None:
    """As `"bash bootstrap.sh && python train.py".split()` is meant; a word with spaces was given whole."""
    assert printed(tmp_path, command=command) == said


def test_the_bootstrap_script_runs_first_and_its_failure_ends_the_job(tmp_path: Path) -> None:
    (tmp_path / "bootstrap.sh").write_text("echo prepared\nexit $CODE\n")
    config = {"bootstrap": "bootstrap.sh", "command": ["echo", "trained", "a  b"]}
    assert printed(tmp_path, **config) == "prepared\ntrained a  b\n0"
    (tmp_path / "bootstrap.sh").write_text("exit 5\n")
    assert printed(tmp_path, **config) == "the bootstrap script bootstrap.sh failed with exit status 5\n5"


def test_an_environment_is_given_in_any_form() -> None:
    """A name, a version, a definition, an `Environment`, and what a build returned: the last one by digest."""
    definition = EnvironmentDefinition(name="iris", requirements=("pandas",))
    ready = ReadyImage(
        reference=f"registry.example.com/iris@{DIGEST}",
        name="iris",
        version=3,
        digest=DIGEST,
        image_hash=DIGEST,
        platform="linux/amd64",
        python_path=PYTHON,
        reused=True,
    )
    config = ScriptRunConfig(script="train.py")
    assert config.on("iris:7").environment == "iris:7"
    assert config.on(definition).environment == definition
    assert config.on(Environment.from_definition(definition)).environment == definition
    assert config.on(ready).environment == f"iris:3@{DIGEST}"
    assert EnvironmentName.parse(f"iris:3@{DIGEST}") == ("iris", 3, DIGEST, "")
    again = ScriptRunConfig(**config.on(definition).model_dump(mode="json"))
    assert again == config.on(definition)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"script": "train.py", "command": "python train.py"},
        {"command": "   "},
        {"command": "python train.py", "arguments": ("a",)},
        {"script": "/etc/passwd"},
        {"script": "../train.py"},
        {"script": "train.py", "outputs": "."},
        {"script": "train.py", "outputs": "../out"},
        {"script": "train.py", "bootstrap": "/bootstrap.sh"},
        {"script": "train.py", "environment": "iris:latest"},
        {"script": "train.py", "environment": "iris:0"},
        {"script": "train.py", "environment": "a b"},
        {"script": "train.py", "source_directory": " "},
        {"script": "train.py", "source_directory": "https://git.example.com/team/code.git#main"},
        {"script": "train.py", "compute_target": "local:podman"},
        {"script": "train.py", "memory": "much"},
        {"script": "train.py", "memory": "0g"},
        {"script": "train.py", "shm_size": "-1g"},
        {"script": "train.py", "cpus": -1},
        {"script": "train.py", "gpus": -2},
        {"script": "train.py", "time_limit_seconds": -1},
        {"script": "train.py", "environment_variables": {"A=B": "x"}},
        {"script": "train.py", "arguments": ("a\0b",)},
        {"script": "train.py", "unknown": 1},
        {"script": "train.py", "distribution": {"kind": "pytorch", "process_count_per_node": 2}},
    ],
)
def test_what_cannot_run_is_refused_when_it_is_written(fields: dict[str, Any]) -> None:
    with pytest.raises((DefinitionError, NameNotAllowed, PrefectEnvironmentsError)):
        ScriptRunConfig(**fields)


SECRET = "planted-0d3fbc81f2"


@pytest.mark.parametrize(
    "fields",
    [
        {"environment_variables": {"API_TOKEN": SECRET}},
        {"command": ["python", "train.py", f"https://ann:{SECRET}@data.example.com/x"], "script": ""},
        {"arguments": [f"hf_{SECRET.replace('-', '')}aaaaaaaaaaaaaaaaaaaa"]},
        {"environment_variables": {"TOKEN": f"@Microsoft.KeyVault(SecretName={SECRET}"}},
        {"source_directory": f"https://ann:{SECRET}@git.example.com/code.git#{'a' * 40}"},
    ],
)
def test_what_looks_like_a_secret_is_refused_and_not_shown(fields: dict[str, Any]) -> None:
    with pytest.raises(PrefectEnvironmentsError) as caught:
        ScriptRunConfig(**{"script": "train.py", **fields})
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


def test_references_and_literal_values_by_a_switch_are_taken() -> None:
    config = ScriptRunConfig(script="train.py", environment_variables={"API_TOKEN": "secret:token"})
    assert config.environment_variables == {"API_TOKEN": "secret:token"}
    assert ScriptRunConfig(script="t.py", environment_variables={"API_TOKEN": "abc"}, allow_literal_secrets=True)


@pytest.mark.parametrize(
    ("text", "size"), [("", 0), ("512m", 512 * 1024**2), ("4g", 4 * 1024**3), ("1.5 GiB", 1610612736), ("7", 7)]
)
def test_sizes_are_read_as_docker_reads_them(text: str, size: int) -> None:
    assert bytes_of(text) == size


def test_a_failed_jobs_error_can_be_handed_to_another_process() -> None:
    """Prefect stores the exceptions of failed runs so."""
    found = pickle.loads(pickle.dumps(JobFailed("the job ended with 3", exit_code=3)))
    assert isinstance(found, JobFailed) and found.exit_code == 3

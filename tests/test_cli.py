"""The command line, as a terminal, a program and CI meet it: real runs for what a process does, `main` for the rest."""

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from prefect_environments.cli import main, output, script, specifications
from prefect_environments.cli.app import cli
from prefect_environments.cli.command import Command
from prefect_environments.cli.workspaces import FolderWorkspace, find_workspace
from prefect_environments.core.environment import Environment
from prefect_environments.core.errors import DefinitionError, SpecificationError
from prefect_environments.core.redact import MASK, remember
from tests.images.conftest import real_pip
from tests.support.base import BaseLayout
from tests.support.wheels import make_wheel

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = [sys.executable, "-m", "prefect_environments"]


@dataclass(frozen=True)
class Done:
    """What a command gave back."""

    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[list[str]]:
        return [line.split("\t") for line in self.out.splitlines()]

    @property
    def document(self) -> Any:
        return json.loads(self.out)


class Shell:
    """Runs commands in a folder with the workspace `./ws`."""

    def __init__(self, folder: Path, base: str) -> None:
        self.folder, self.base = folder, base

    def write(self, path: str, *packages: str) -> str:
        """A requirements file that finds the wheels of this folder only."""
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        links = f"--find-links {self.folder / 'wheels'}"
        (self.folder / path).write_text("\n".join([*packages, "--no-index", links, ""]))
        return path

    def __call__(self, *words: str) -> Done:
        """In this process."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.chdir(self.folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([*words, *(() if {"-w", "--help"} & {*words} else ("-w", "./ws"))])
        return Done(code, out.getvalue(), err.getvalue())

    def process(self, *words: str, options: tuple[str, ...] = (), env: Mapping[str, str] = {}) -> Done:
        """In a process of its own."""
        command = [sys.executable, *options, "-m", "prefect_environments", *words]
        environ = {**os.environ, "PREFECT_ENVIRONMENTS_WORKSPACE": "./ws", **env}
        done = subprocess.run(command, cwd=self.folder, env=environ, capture_output=True, text=True, check=False)
        return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, base_layout: BaseLayout) -> Shell:
    """A workspace with two versions of `iris`."""
    shell = Shell(tmp_path_factory.mktemp("cli"), base_layout.reference)
    for name, version in (("alpha", "1.0"), ("alpha", "2.0"), ("beta", "1.0")):
        make_wheel(shell.folder / "wheels", name, version)
    shutil.copy(real_pip(), shell.folder / "wheels")
    for packages in (("alpha<2",), ("alpha", "beta")):
        done = shell("build", shell.write("requirements.txt", *packages), "-n", "iris", "-b", shell.base, "--upgrade")
        assert done.code == 0, done.err
    return shell


@pytest.fixture
def shell(made: Shell, tmp_path: Path) -> Shell:
    """A folder of the test's own, with a copy of the workspace."""
    for name in ("wheels", "ws"):
        shutil.copytree(made.folder / name, tmp_path / name)
    return Shell(tmp_path, made.base)


def commands(group: click.Group = cli, *path: str) -> Iterator[tuple[tuple[str, ...], Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)
        else:
            assert isinstance(command, Command)
            yield (*path, name), command


def test_help_comes_without_loading_prefect_or_what_builds(made: Shell) -> None:
    for words in (["--help"], ["build", "--help"]):
        done = made.process(*words, options=("-X", "importtime"))
        loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.err.splitlines()}
        assert done.code == 0
        assert "click" in loaded
        assert loaded & {"prefect", "pydantic", "rich", "aiohttp", "docker", "rattler", "yaml"} == set()


def test_a_workspace_in_a_folder_needs_no_prefect(shell: Shell) -> None:
    """Neither to look nor to build."""
    name = shell.write("more.txt", "beta")
    for words in (["build", name, "-b", shell.base], ["show", "iris"], ["verify", "iris"]):
        done = shell.process(*words, options=("-X", "importtime"))
        assert done.code == 0, done.err
        loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.err.splitlines()}
        assert "prefect_environments" in loaded
        assert "prefect" not in loaded


def test_the_installed_command_and_python_m_are_the_same_program(made: Shell) -> None:
    target = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["prefect-environments"]
    module, _, function = target.partition(":")
    assert getattr(import_module(module), function) is script
    assert made.process("--version").out.startswith("prefect-environments, version ")


@pytest.mark.parametrize(("path", "command"), [pytest.param(*one, id=" ".join(one[0])) for one in commands()])
def test_every_command_shows_examples_that_parse(path: tuple[str, ...], command: Command, made: Shell) -> None:
    assert command.examples
    shown = made(*path, "--help").out
    for example in command.examples:
        assert example in shown
        words = shlex.split(example)
        assert words[: 1 + len(path)] == ["prefect-environments", *path]
        command.make_context(path[-1], words[1 + len(path) :])
    assert "Exit codes" in shown


def test_help_says_what_every_exit_code_means(made: Shell) -> None:
    shown = made("--help").out
    assert [code for code in ("0 ", "1 ", "2 ", "130 ") if f"\n    {code}" not in shown] == []
    assert "prefect deployment run build-environment/build-environment" in shown


def test_help_names_flows_that_are_deployed(made: Shell) -> None:
    """As `prefect.yaml` names them."""
    text = "".join(made(*path, "--help").out for path, _ in [((), None), *commands()])
    named = set(re.findall(r"prefect deployment run (\S+)", text))
    listed = yaml.safe_load((ROOT / "prefect.yaml").read_text("utf-8"))["deployments"]
    deployed = {f"{one['entrypoint'].rpartition('.')[2].replace('_', '-')}/{one['name']}" for one in listed}
    assert len(named) >= 5
    assert named - deployed == set()


def test_a_build_prints_one_line_and_its_progress_goes_elsewhere(shell: Shell) -> None:
    done = shell.process("build", shell.write("new.txt", "alpha"), "-b", shell.base)
    assert done.code == 0, done.err
    ((name, version, status, reference, seconds, sent),) = done.rows
    assert (name, version, status) == ("new", "1", "built")
    assert re.fullmatch(
        rf"oci:{re.escape(str(shell.folder))}/ws/images:environments/new@sha256:[0-9a-f]{{64}}", reference
    )
    assert float(seconds) > 0
    assert int(sent) > 0
    assert "resolving packages" in done.err
    again = shell.process("build", "new.txt", "-b", shell.base, "--json", "--quiet")
    (row,) = again.document["environments"]
    assert (row["status"], row["reference"], row["version"], row["bytes_sent"]) == ("ready", reference, 1, 0)
    assert again.err == ""


def test_an_environment_is_built_again_if_forced_and_resolved_again_if_asked(shell: Shell) -> None:
    shell.write("requirements.txt", "alpha")
    words = ("build", "requirements.txt", "-n", "iris", "-b", shell.base, "--json")
    (first,) = shell(*words).document["environments"]
    assert (first["version"], first["status"], first["packages"]) == (3, "built", 2)
    make_wheel(shell.folder / "wheels", "alpha", "3.0")
    (same,) = shell(*words, "--force").document["environments"]
    assert (same["version"], same["status"], same["digest"]) == (3, "built", first["digest"])
    (newer,) = shell(*words, "--upgrade").document["environments"]
    assert newer["version"] == 4
    assert "~ alpha 2.0 → 3.0" in shell("diff", "iris", "3", "4").out


def test_many_are_built_together_and_one_failure_stops_no_other(shell: Shell) -> None:
    for name in ("one", "two"):
        shell.write(f"many/{name}.txt", "alpha")
    shell.write("many/wrong.txt", "alpha==9")
    (shell.folder / "many" / "garbage.txt").write_text("???\n")
    done = shell("build", "many", shell.write("three.txt", "beta"), "-b", shell.base, "--json")
    assert done.code == 1
    found = {row["name"]: row for row in done.document["environments"]}
    assert sorted(found) == ["garbage", "one", "three", "two", "wrong"]
    assert {found["one"]["status"], found["two"]["status"]} == {"built", "reused"}
    assert found["three"]["status"] == "built"
    assert "alpha==9" in found["wrong"]["reason"]
    assert sorted(re.findall(r"^error: (\w+):", shell("build", "many", "-b", shell.base).err, re.MULTILINE)) == [
        "garbage",
        "wrong",
    ]
    assert shell("build", "many", "--force").code == 2


def test_every_format_is_read_and_gives_its_name(tmp_path: Path) -> None:
    (tmp_path / "req.txt").write_text("alpha\n")
    (tmp_path / "environment.yml").write_text("name: geo\ndependencies: [python=3.12, gdal]\n")
    (tmp_path / "azure.yaml").write_text("name: azure\nimage: registry.example.com/base:1\n")
    (tmp_path / "Dockerfile").write_text("FROM registry.example.com/base:1\n")
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "pyproject.toml").write_text('[project]\nname = "thing"\ndependencies = ["alpha"]\n')
    (tmp_path / "context").mkdir()
    (tmp_path / "context" / "Dockerfile").write_text("FROM registry.example.com/base:1\nCOPY . /data\n")
    saved = Environment.from_pip_requirements("saved", tmp_path / "req.txt")
    saved.save_to_directory(tmp_path / "v1")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "requirements.txt").write_text("alpha\n")
    expected = {
        "req.txt": "req",
        "environment.yml": "geo",
        "azure.yaml": "azure",
        "project": "thing",
        "project/pyproject.toml": "thing",
        "context": "context",
        "v1": "saved",
        "v1/azureml_environment.json": "saved",
        "work/requirements.txt": "work",
        "Dockerfile": tmp_path.name,
    }
    found = {path: specifications.read([str(tmp_path / path)]).definitions[0] for path in expected}
    assert {path: definition.name for path, definition in found.items()} == expected
    assert found["context"].build_context
    assert found["v1"].requirements == ("alpha",)
    together = specifications.read([str(tmp_path / path) for path in ("req.txt", "v1", "work")], base_image="base:1")
    assert [definition.base_image for definition in together.definitions] == ["base:1"] * 3


def test_a_base_image_is_given_only_to_what_names_none_and_a_name_to_one_environment(tmp_path: Path) -> None:
    (tmp_path / "azure.yaml").write_text("name: azure\nimage: registry.example.com/base:1\n")
    (tmp_path / "Dockerfile").write_text("FROM registry.example.com/base:1\n")
    paths = [str(tmp_path / name) for name in ("azure.yaml", "Dockerfile")]
    named, built = specifications.read(paths, base_image="other:2").definitions
    assert (named.base_image, built.base_image) == ("registry.example.com/base:1", "")
    assert specifications.read(paths[:1], name="mine").definitions[0].name == "mine"
    with pytest.raises(DefinitionError, match="--name mine is for one environment"):
        specifications.read(paths, name="mine")
    (tmp_path / "data.csv").write_text("a,b\n")
    with pytest.raises(SpecificationError, match=r"data\.csv has no name by which its format is known"):
        specifications.read([str(tmp_path / "data.csv")])


def test_list_has_the_newest_versions_or_all_of_one(made: Shell) -> None:
    assert [row[:2] for row in made("list").rows] == [["iris", "2"]]
    found = made("list", "iris", "--json").document["environments"]
    assert [(one["version"], one["packages"], one["state"]) for one in found] == [
        (1, 2, "registered"),
        (2, 3, "registered"),
    ]
    assert made("list", "iris").rows[0][-1] == found[0]["digest"]


def test_show_tells_packages_base_maker_and_size_of_a_version(made: Shell) -> None:
    found = made("show", "iris", "--json").document
    packages = {one["name"]: one["version"] for one in found["packages"]}
    assert found["version"] == 2
    assert {name: packages[name] for name in ("alpha", "beta")} == {"alpha": "2.0", "beta": "1.0"}
    assert packages.keys() == {"alpha", "beta", "pip"}
    assert found["base"]["digest"].startswith("sha256:")
    assert found["created_by"]["command"] == "prefect-environments build"
    assert found["created_by"]["user"]
    assert found["size"] > 1_000_000
    rows = {tuple(row[:2]): row for row in made("show", "iris:1").rows}
    assert rows["package", "alpha"][2] == "1.0"
    assert ("version", "1") in rows


def test_labels_are_set_moved_followed_and_removed_with_their_history(shell: Shell) -> None:
    assert shell("label", "set", "iris:1", "production", "--reason", "tested\x1b[31m").code == 0
    assert shell("show", "iris@production", "--json").document["version"] == 1
    assert shell("label", "set", "iris", "staging").code == 0
    assert shell("label", "set", "iris@staging", "production").code == 0
    assert [(row[1], row[2]) for row in shell("list", "iris").rows] == [("1", ""), ("2", "production, staging")]
    removed = ("label", "remove", "iris", "staging", "--json")
    assert [shell(*removed).document["removed"] for _ in range(2)] == [True, False]
    shown = shell("show", "iris:1")
    events = [row[2:5] for row in shown.rows if row[0] == "history"]
    assert events == [["labelled", "production", "1"], ["labelled", "production", "2"]]
    assert "tested" in shown.out
    assert "\x1b" not in shown.out, "what others wrote cannot move the cursor"


def test_diff_has_the_exit_codes_of_diff(made: Shell) -> None:
    found = made("diff", "iris", "1")
    assert found.code == 1
    assert {"~ alpha 1.0 → 2.0", "+ beta 1.0"} <= {*found.out.splitlines()}
    assert made("diff", "iris", "2", "2").code == 0
    changed = made("diff", "iris", "1", "2", "--json").document["lock"]["packages"]
    assert [(one["name"], one["old"], one["new"]) for one in changed] == [("alpha", "1.0", "2.0"), ("beta", "", "1.0")]
    for words in (["iris", "1", "9"], ["other", "1", "2"], ["iris", "nosuch"], ["iris", "a:b"]):
        assert made("diff", *words).code == 2
    done = made("diff", "iris", "1", "9")
    assert (done.out, done.err.count("\n")) == ("", 1)


def test_verify_and_status_fail_where_an_image_is_gone_or_altered(shell: Shell) -> None:
    whole = shell("verify", "iris:1", "--full", "--rebuild", "--json")
    assert (whole.code, whole.document["ok"]) == (0, True)
    assert {row["state"] for row in whole.document["checks"]} == {"ok"}
    assert shell("status").rows[0][:3] == ["iris", "2", "there"]
    quick = {row[0]: row[1:] for row in shell("verify", "iris:1").rows if len(row) == 4}
    assert quick["contents"] == ["not looked at", "", "--full reads every layer"], "as a terminal asks for it"
    assert quick["rebuild"][2].startswith("--rebuild ")
    image = shell("show", "iris", "--json").document["digest"].partition(":")[2]
    (shell.folder / "ws" / "images" / "blobs" / "sha256" / image).unlink()
    wrong = shell("verify", "iris", "--json")
    assert (wrong.code, wrong.document["ok"]) == (1, False)
    gone = shell("status", "--json")
    assert (gone.code, gone.document["images"][0]["state"]) == (1, "missing")
    assert shell("status", "iris").code == 1


def test_inspect_tells_what_is_in_an_image(made: Shell) -> None:
    found = made("inspect", made.base, "--json").document
    assert found["libc"].startswith("glibc")
    assert any(one["version"].startswith("3.") for one in found["interpreters"])
    assert "python" in {row[0] for row in made("inspect", made.base, "-q").rows}


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["nosuch"], 2, "No such command 'nosuch'"),
        (["build"], 2, "Missing argument"),
        (["build", "nofile.txt"], 2, "there is no file or folder 'nofile.txt'"),
        (["build", "requirements.txt", "--name", "a/b"], 2, "a/b"),
        (["show", "iris:latest"], 2, "write iris, iris:3 or iris@production"),
        (["show", "iris:9"], 1, "it has 1, 2"),
        (["show", "other"], 1, "it has iris"),
        (["label", "set", "iris", "latest"], 2, "cannot be set"),
        (["list", "-w", "./none"], 2, "is no workspace: nothing was registered in it yet"),
        (["inspect", "https://ann:pass-word@registry.example.com/base"], 2, "credentials go into"),
        (["build", "https://ann:pass-word@files.example.com/r.txt"], 2, "https://files.example.com/r.txt"),
        (["refresh", "--label", "staging"], 2, "give --build"),
        (["refresh", "--exclude-newer-days", "-1"], 2, "exclude_newer_days"),
        (["prune", "--keep", "0"], 2, "--keep: Input should be greater than or equal to 1"),
        (["promote", "iris"], 2, "Missing option '--to'"),
        (["status", "AzureML-sklearn"], 1, "not built in this workspace"),
        (["archive", "other"], 1, "'other' is not registered"),
    ],
)
def test_an_error_is_a_line_with_its_exit_code(words: list[str], code: int, said: str, made: Shell) -> None:
    done = made(*words)
    assert done.code == code
    assert done.out == ""
    lines = done.err.strip().splitlines()
    assert lines[-1].startswith("error: ")
    assert said in lines[-1]
    assert "Traceback" not in done.err
    assert "pass-word" not in done.err
    assert not (made.folder / "none").exists()


def test_an_error_is_a_document_with_json_and_a_traceback_with_debug(made: Shell) -> None:
    done = made("show", "iris:9", "--json", "--debug")
    assert done.document["error"]["kind"] == "VersionNotFound"
    assert "it has 1, 2" in done.document["error"]["message"]
    assert "Traceback" in done.err


def test_what_is_known_as_a_secret_is_masked_wherever_text_leaves(made: Shell) -> None:
    remember("s3cret-value-77")
    for words in (["show", "s3cret-value-77"], ["show", "s3cret-value-77", "--json", "--debug"]):
        done = made(*words)
        assert done.code == 1
        assert MASK in done.err
        assert "s3cret-value-77" not in done.out + done.err


def test_an_unforeseen_error_is_a_line_too(made: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError("inner")

    monkeypatch.setattr(output, "write", broken)
    done = made("list")
    assert done.code == 1
    assert done.err == "error: unexpected KeyError: 'inner' (this is a defect; --debug shows where)\n"


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_build_leaves_nothing_half_done(sent: signal.Signals, code: int, shell: Shell) -> None:
    """Stopped, with all processes that it started, while it waits for a package index that never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/simple/"
        (shell.folder / "slow.txt").write_text(f"--index-url {url}\nalpha\n")
        env = {**os.environ, "XDG_CACHE_HOME": str(shell.folder / "cache")}
        command = [*PROGRAM, "build", "slow.txt", "-b", shell.base, "-w", "./fresh"]
        with subprocess.Popen(
            command, cwd=shell.folder, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True
        ) as process:
            assert process.stderr is not None
            lines = iter(process.stderr)
            next(line for line in lines if "resolving packages" in line)
            os.killpg(process.pid, sent)
            rest = list(lines)
    assert process.returncode == code
    assert rest == ["interrupted; nothing half done is left\n"]
    own = shell.folder / "cache" / "prefect-environments"
    assert [path for name in ("scratch", "resolve") for path in (own / name).rglob("*") if path.is_file()] == []
    assert not (shell.folder / "fresh" / "versions").exists()


def test_a_reader_who_leaves_early_is_no_error(made: Shell) -> None:
    environ = {**os.environ, "PREFECT_ENVIRONMENTS_WORKSPACE": "./ws"}
    reader, writer = os.pipe()
    os.close(reader)
    with subprocess.Popen(
        [*PROGRAM, "show", "iris"], cwd=made.folder, env=environ, stdout=writer, stderr=subprocess.PIPE, text=True
    ) as process:
        os.close(writer)
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert process.returncode == 141


@pytest.mark.parametrize("colours", [True, False])
def test_a_terminal_gets_tables_with_colours_unless_it_wants_none(colours: bool, made: Shell) -> None:
    environ = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120"}
    environ |= {} if colours else {"NO_COLOR": "1"}
    terminal, inside = os.openpty()
    command = [*PROGRAM, "status", "-w", "./ws"]
    with subprocess.Popen(command, cwd=made.folder, env=environ, stdout=inside) as process:
        os.close(inside)
        shown = b""
        while part := _read(terminal):
            shown += part
    os.close(terminal)
    assert process.returncode == 0
    text = shown.decode()
    assert "version" in text, "a table has a head"
    assert "\t" not in text
    assert ("\x1b[32mthere" in text) is colours


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # how Linux says that nobody writes any more
        return b""


def test_a_folder_is_the_workspace_that_workspace_local_makes_of_it(made: Shell, tmp_path: Path) -> None:
    from prefect_environments.blocks import Workspace

    block, own = Workspace.local(made.folder / "ws"), find_workspace(str(made.folder / "ws"))
    for name in ("name", "repository_prefix", "default_base_image", "allow_source_builds", "index_url"):
        assert getattr(own, name) == getattr(block, name)
    assert own.registry_settings.address == block.registry_settings.address
    assert dict(own.index_credentials) == block.index_credentials


def test_a_folder_keeps_the_name_that_its_versions_have(shell: Shell) -> None:
    from prefect_environments.blocks import Workspace

    environment = Environment.from_pip_requirements("named", shell.folder / shell.write("r.txt", "alpha"))
    environment.docker.base_image = shell.base
    environment.register(Workspace.local(shell.folder / "other", name="team"))
    done = shell("list", "-w", "./other", "--json")
    assert done.document["workspace"] == "team"
    assert [one["name"] for one in done.document["environments"]] == ["named"]


def test_a_saved_workspace_works_the_same_and_standard_output_stays_clean(
    shell: Shell, prefect_server: str, tmp_path: Path
) -> None:
    from prefect_environments.blocks import ContainerRegistry, Workspace

    name = f"cli-{time.time_ns()}"
    registry = ContainerRegistry(address=f"oci:{tmp_path / 'saved'}")
    registry.save(name)
    Workspace(name=name, registry=registry, default_base_image=shell.base).save(name)
    shell.write("saved.txt", "alpha")
    built = shell.process("build", "saved.txt", "--json", env={"PREFECT_ENVIRONMENTS_WORKSPACE": name})
    assert built.code == 0, built.err
    (row,) = built.document["environments"]
    assert (built.document["workspace"], row["status"], row["version"]) == (name, "built", 1)
    assert shell("label", "set", "saved", "production", "-w", name, "--json").document["version"] == 1
    (listed,) = shell("list", "-w", name, "--json").document["environments"]
    assert (listed["name"], listed["labels"]) == ("saved", ["production"])
    pruned = shell("prune", "-w", name, "--json").document
    assert (pruned["dry_run"], [one["action"] for one in pruned["rows"] if one["version"]]) == (True, ["keep"])
    missing = shell("list", "-w", f"{name}-none")
    assert missing.code == 2
    assert missing.err.startswith(f"error: there is no Environments Workspace block '{name}-none'")
    (tmp_path / "config.json").write_text(json.dumps({"workspace_name": f"{name.upper()}"}))
    assert shell("list", "-w", str(tmp_path), "--json").document["workspace"] == name
    assert isinstance(find_workspace(f"{tmp_path}/new", create=True), FolderWorkspace)


def test_a_fresh_look_reports_drift_and_builds_it_if_asked(shell: Shell) -> None:
    links = f"--no-index --find-links {shell.folder / 'wheels'}".replace(" --find", "\n--find")
    (shell.folder / "d.txt").write_text(f"alpha\n{links}\n")
    assert shell("build", "d.txt", "-b", shell.base).code == 0
    assert shell("refresh", "d").rows == [["d", "1", "unchanged", "", ""]]
    make_wheel(shell.folder / "wheels", "alpha", "3.0")
    done = shell("refresh", "d")
    assert (done.code, done.rows[0][:3], done.rows[-1]) == (
        1,
        ["d", "1", "drifted"],
        ["change", "d", "~ alpha 2.0 → 3.0"],
    )
    built = shell("refresh", "d", "--build", "--label", "staging", "--json")
    assert built.code == 0, built.err
    (row,) = built.document["environments"]
    assert (row["status"], row["new_version"]) == ("built", 2)
    assert shell("show", "d@staging", "--json").document["created_by"]["command"] == "prefect-environments refresh"


def test_a_version_is_promoted_to_another_folder_with_its_digest(shell: Shell) -> None:
    digest = shell("show", "iris:1", "--json").document["digest"]
    words = ("promote", "iris:1", "--to", "./prod", "--label", "production", "--json")
    first, again = (shell(*words).document for _ in range(2))
    assert (first["status"], again["status"], first["version"]) == ("promoted", "ready", 1)
    assert first["reference"].endswith(digest)
    shown = shell("show", "iris@production", "-w", "./prod", "--json").document
    assert (shown["digest"], shown["origin"]["version"]) == (digest, 1)
    assert shell("verify", "iris", "-w", "./prod").code == 0


def test_archived_environments_are_listed_only_if_asked_and_pruning_is_dry_unless_asked(shell: Shell) -> None:
    assert [shell("archive", "iris", "--json").document["changed"] for _ in range(2)] == [True, False]
    assert shell("list").rows == []
    assert [row[6] for row in shell("list", "--archived").rows] == ["archived"]
    assert shell("restore", "iris").code == 0
    assert len(shell("list").rows) == 1
    done = shell("prune", "--keep", "1", "--older-than-days", "0")
    assert done.code == 0
    assert [row[:3] for row in done.rows if row[1]] == [["iris", "1", "keep"], ["iris", "2", "keep"]], "used just now"
    assert done.err.startswith("dry run: ")
    assert shell("prune", "--delete", "--json").document["dry_run"] is False


def test_the_age_limit_is_that_of_the_flow() -> None:
    from prefect_environments.cli.life import DAYS
    from prefect_environments.tasks.refresh import DAYS as OF_THE_FLOW

    assert DAYS == OF_THE_FLOW

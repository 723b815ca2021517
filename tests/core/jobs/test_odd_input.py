"""What comes out of jobs and sources that nobody thought of: odd names, odd links, odd numbers."""

import asyncio
import fcntl
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from prefect_environments import ScriptRunConfig
from prefect_environments.core.errors import DefinitionError
from prefect_environments.core.jobs.channel import Channel
from prefect_environments.core.jobs.inside import wire
from prefect_environments.core.jobs.inside.relay import Relay
from prefect_environments.core.jobs.inside.run import Run
from prefect_environments.core.jobs.launcher import JobResult
from prefect_environments.core.jobs.local_docker import _is_held
from prefect_environments.core.jobs.log import JobLog, Lines
from prefect_environments.core.jobs.outputs import list_files, read_metrics
from prefect_environments.core.jobs.source import check_source, stage
from prefect_environments.core.redact import MASK, remember
from prefect_environments.core.secrets import SecretReference
from prefect_environments.tasks.jobs import job_markdown
from tests.core.jobs.test_run_context import inside
from tests.core.jobs.test_source import committed
from tests.images.parts import Secrets

NOBODY = 65534


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A source beside other folders of this machine, with links of all kinds."""
    place = tmp_path / "source"
    for name in ("shared/train.py", "source/real/train.py", "source/real/run"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("print(1)\n")
    links = {"out.py": "../shared/train.py", "in.py": "real/train.py", "lib": "real", "far": "../shared", "gone": "no"}
    for name, target in links.items():
        (place / name).symlink_to(target)
    (place / "own").mkdir()
    return place


def job(source: Path, **fields: Any) -> ScriptRunConfig:
    return ScriptRunConfig(**{"source_directory": str(source), **({} if "script" in fields else {"command": "true"}), **fields})  # fmt: skip # noqa: E501


@pytest.mark.parametrize("script", ["in.py", "lib/train.py", "real/run"])
async def test_scripts_behind_links_inside_the_source_are_there(source: Path, tmp_path: Path, script: str) -> None:
    check_source(job(source, script=script))
    (tmp_path / "job").mkdir()
    assert (await stage(job(source, script=script), tmp_path / "job") / script).read_text() == "print(1)\n"


@pytest.mark.parametrize(
    ("script", "told"),
    [("out.py", "link to what is not in"), ("far/train.py", "link to what"), ("gone", "not there"), ("own", "no file")],
)
def test_scripts_that_the_job_would_not_find_are_told(source: Path, script: str, told: str) -> None:
    with pytest.raises(DefinitionError, match=told):
        check_source(job(source, script=script))


@pytest.mark.parametrize("outputs", ["far/outputs", "lib/deep/outputs", "real/run/outputs", "real/run", "gone/outputs"])
def test_outputs_are_a_folder_of_the_jobs_own(source: Path, outputs: str) -> None:
    """What lies behind a link of the source would be moved away as former outputs."""
    with pytest.raises(DefinitionError, match="outputs is"):
        check_source(job(source, outputs=outputs))
    check_source(job(source, outputs="lib"))  # a link itself is replaced in the copy
    check_source(job(source, outputs="new/outputs"))


async def test_a_commit_is_looked_at_once_it_is_there(source: Path, tmp_path: Path) -> None:
    (source / ".git").mkdir()
    commit = committed(source)
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    given = job(Path(), source_directory=f"{source.as_uri()}#{commit}", script="missing.py")
    with pytest.raises(DefinitionError, match=r"missing\.py' is not there"):
        await stage(given, tmp_path / "one")
    given = job(Path(), source_directory=f"{source.as_uri()}#{commit}", outputs="far/outputs")
    with pytest.raises(DefinitionError, match="outputs is"):
        await stage(given, tmp_path / "two")


async def test_a_source_that_holds_the_place_of_its_copy_is_copied_once(source: Path) -> None:
    scratch = source / "cache" / "scratch"
    scratch.mkdir(parents=True)
    copy = await stage(job(source), scratch)
    assert (copy / "real" / "train.py").exists() and not list((copy / "cache" / "scratch").iterdir())


def test_outputs_with_odd_names_and_metrics_can_be_told(tmp_path: Path) -> None:
    """Names that are no text, half a character, an integer that JSON's readers cannot hold: each fits into a result."""
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.bin")).write_text("x")
    (tmp_path / "metrics.json").write_text('{"\\ud800": "\\udc00 half", "n": 100000000000000000000, "m": -3}')
    metrics, files = read_metrics(tmp_path), list_files(tmp_path)
    assert [file.path for file in files] == ["metrics.json", "\\xff.bin"]
    assert metrics == {"?": "? half", "n": "100000000000000000000", "m": -3}
    given: dict[str, Any] = {
        "id": "1",
        "exit_code": 0,
        "target": "process",
        "reference": "r",
        "name": "n",
        "version": 1,
    }
    told = JobResult(**given, outputs="o", files=files, metrics=metrics).model_dump_json()
    assert json.loads(told)["metrics"] == metrics


def test_names_of_outputs_are_for_readers(tmp_path: Path) -> None:
    """On one line, a known secret masked."""
    remember("planted-name-41cc")
    (tmp_path / "a\nb | planted-name-41cc").touch()
    (file,) = list_files(tmp_path)
    assert file.path == f"a\\nb | {MASK}"
    given: dict[str, Any] = {"id": "1", "exit_code": 0, "target": "docker", "reference": "r", "name": "n", "version": 1}
    shown = job_markdown(JobResult(**given, outputs="o", files=(file,)))
    assert shown.splitlines()[-1] == f"| a\\nb \\| {MASK} | 0 B |"


def test_a_folder_in_the_place_of_the_metrics_file_is_no_metric(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").mkdir()
    assert read_metrics(tmp_path) == {}


async def test_what_a_script_logs_never_ends_it(tmp_path: Path) -> None:
    class Array:
        def item(self) -> float:
            raise ValueError("only one element can be converted")

        def __str__(self) -> str:
            return "[1 2]"

    def work(run: Run) -> None:
        run.log("array", Array())
        run.log("huge", 10**5000)
        run.log("half", "\ud800!")

    channel = Channel("job", Secrets(), {})
    await inside(channel, tmp_path, work)
    last = channel.metrics.last
    assert (last["array"], last["half"]) == ("[1 2]", "?!") and str(last["huge"]).startswith("0x")


async def test_a_token_that_is_no_text_is_a_wrong_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    channel = Channel("job", Secrets(), {})
    async with channel.serve(tmp_path, "127.0.0.1"):
        port = json.loads((tmp_path / wire.DESCRIPTION).read_text())["port"]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b'{"do": "log", "token": "\\ud800"}\n')
        assert json.loads(await reader.readline()) == {"error": "the token is missing or wrong"}
        writer.close()
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_line_that_ends_with_several_returns_is_not_lost() -> None:
    seen: list[str] = []
    lines = Lines(JobLog(seen.append))
    for piece in (b"10%\r100%\r\r\nnext\r\r", b"\nlast\r"):
        lines.feed(piece)
    lines.close()
    assert seen == ["100%", "next", "last"]
    relay = Relay(None, "")  # type: ignore[arg-type]
    assert relay._lines(b"10%\r100%\r\r\nnext\n") == [b"100%\n", b"next\n"]


async def test_lines_of_a_secret_that_was_asked_for_are_masked(tmp_path: Path) -> None:
    """A key is printed line by line, a token without the line end that its vault has."""
    channel = Channel(
        "job", Secrets({"key": "planted-first-2c\nplanted-second-1f\n"}), {"key": SecretReference.parse("secret:key")}
    )
    await inside(channel, tmp_path, lambda run: run.get_secret("key"))
    seen: list[str] = []
    lines = Lines(JobLog(seen.append))
    lines.feed(b"a planted-first-2c\nplanted-second-1f b\n")
    assert seen == [f"a {MASK}", f"{MASK} b"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_running_job_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    """On a shared engine, another user's marker cannot be opened; its job is not one whose process is gone."""
    marker = tmp_path / "marker"
    marker.touch(mode=0o600)
    with marker.open("r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        os.seteuid(NOBODY)
        try:
            assert _is_held(marker)
        finally:
            os.seteuid(0)
    assert not _is_held(marker)

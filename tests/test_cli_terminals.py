"""The command line where the output is narrow, old, closed or full, and where a file or a secret is awkward."""

import errno
import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from rich.console import Console

from prefect_environments.cli import main, output, specifications
from prefect_environments.cli.output import Bytes, Digest, Table, When
from prefect_environments.cli.target import Target, target
from prefect_environments.core.errors import SpecificationError
from prefect_environments.core.fleet.specifications import read_folder
from prefect_environments.core.redact import MASK, remember

DIGEST = Digest("sha256:" + "0123456789abcdef" * 4)
TIME = When("2026-01-02T03:04:05+00:00")
COLUMNS = ("name", "version", "labels", "created", "size", "state", "digest")
ROWS = [
    ("iris", 12, "", TIME, Bytes(22_735_101), "registered", DIGEST),
    ("churn-forecast", 3, "", TIME, Bytes(830), "registered", DIGEST),
]


def drawn(width: int, table: Table) -> list[str]:
    """The lines of a table on a terminal that wide."""
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None, highlight=False)
    output._draw(console, table)
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines() if line.strip()]


def test_a_table_leaves_out_columns_that_are_empty() -> None:
    head, _, *lines = drawn(120, Table(COLUMNS, ROWS))
    assert head.split() == ["name", "version", "created", "size", "state", "digest"]
    assert lines[0].split() == ["iris", "12", "2026-01-02", "03:04", "22.7", "MB", "registered", "sha256:0123456789ab"]


@pytest.mark.parametrize("width", [80, 70])
def test_a_table_on_a_usual_terminal_breaks_no_word(width: int) -> None:
    """What is only for orientation, the beginning of a digest, gives way first."""
    head, _, *lines = drawn(width, Table(COLUMNS, ROWS))
    assert "digest" not in head
    assert [line.split()[0] for line in lines] == ["iris", "churn-forecast"]
    assert all("registered" in line and "2026-01-02 03:04" in line for line in lines)


def test_a_narrow_terminal_gets_each_row_as_names_and_values() -> None:
    lines = drawn(40, Table(COLUMNS, ROWS))
    assert max(map(len, lines)) <= 40
    assert [line.split()[1] for line in lines if line.startswith("name")] == ["iris", "churn-forecast"]
    assert [line.split()[1:] for line in lines if line.startswith("created")] == [["2026-01-02", "03:04"]] * 2


def test_an_environment_named_like_a_state_has_no_colour() -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system="standard", highlight=False)
    output._draw(console, Table(("name", "state"), [("ok", "ok")]))
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().count("\x1b[32mok") == 1


def written(document: dict[str, object], monkeypatch: pytest.MonkeyPatch, encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    output.write_json(document)
    sys.stdout.flush()
    return raw.getvalue().decode(encoding)


def test_a_secret_that_json_quotes_is_masked_and_one_of_digits_breaks_no_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    remember('pass"wo\\rd-9')
    remember("735101")
    text = written({"size": 22_735_101, "reason": 'it was pass"wo\\rd-9', "inner": [{"a": ("735101",)}]}, monkeypatch)
    assert json.loads(text) == {"size": 22_735_101, "reason": f"it was {MASK}", "inner": [{"a": [MASK]}]}


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_document_has_all_characters_in_every_encoding(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    document: dict[str, object] = {"reason": "schön → 🎉"}
    text = written(document, monkeypatch, encoding)
    assert json.loads(text) == document
    assert ("→" in text) is (encoding == "utf-8")


@pytest.mark.parametrize("words", [[], ["label"]])
def test_without_a_command_there_is_help_and_not_an_error_around_it(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main(words)
    shown = "".join(capsys.readouterr())
    assert shown.startswith("Usage: prefect-environments")
    assert "error:" not in shown and "--help tells more" not in shown


def test_what_others_wrote_moves_no_cursor_in_lines_either(capsys: pytest.CaptureFixture[str]) -> None:
    """A diff's lines have names of tags and variables in them."""
    output.write(["~ tag a\x1b[2Jb"])
    assert capsys.readouterr().out == "~ tag a [2Jb\n"


def test_no_version_has_the_number_0_which_is_not_the_newest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(click.BadParameter, match="write iris, iris:3"):
        target("iris:0")
    assert target("iris:10") == Target("iris", 10)
    assert main(["promote", "iris:0", "--to", "./prod", "-w", "./none"]) == 2
    assert "'iris:0' is no version" in capsys.readouterr().err


def test_only_warnings_are_told_also_where_tasks_hand_lines_on(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """As pruning in a saved workspace loads them; with --debug all is told, and later callers hear what they did."""
    import prefect_environments.tasks.site

    assert prefect_environments.tasks.site.RunLogHandler in map(
        type, logging.getLogger("prefect_environments.core").handlers
    )
    lines, own = logging.getLogger("prefect_environments.core.any"), logging.getLogger("prefect_environments.any")
    caplog.set_level(logging.INFO, logger="prefect_environments")
    with output.hear(debug=False):
        lines.info("on the way")
        lines.warning("look here")
        assert not own.isEnabledFor(logging.INFO)
    assert own.isEnabledFor(logging.INFO)
    assert capsys.readouterr().err == "warning: look here\n"
    with output.hear(debug=True):
        lines.info("on the way")
    assert capsys.readouterr().err == "info: on the way\n"


def run(*words: str, folder: Path, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "prefect_environments", *words]
    environ = {**os.environ, **dict(options.pop("env", {}))}  # type: ignore[call-overload]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run(command, cwd=folder, env=environ, text=True, check=False, **options)  # type: ignore[call-overload,no-any-return]


def test_a_terminal_without_unicode_gets_escapes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    monkeypatch.chdir(tmp_path)
    assert main(["list", "-w", "./none"]) == 2
    output.write(["iris 1 → 2"])
    sys.stdout.flush()
    assert raw.getvalue() == b"iris 1 \\u2192 2\n"


@pytest.mark.parametrize("words", [("list",), ("list", "--json"), ("--help",), ("list", "-w", "./none", "--json")])
def test_a_closed_output_is_no_defect(words: tuple[str, ...], tmp_path: Path) -> None:
    """What a service manager or `>&-` does; results then go nowhere, and the exit code stays."""
    (tmp_path / "ws" / "versions").mkdir(parents=True)
    found = run(
        *words,
        folder=tmp_path,
        env={"PREFECT_ENVIRONMENTS_WORKSPACE": "./ws"},
        stdout=None,
        preexec_fn=lambda: os.close(1),
    )
    assert found.returncode == (2 if "./none" in words else 0)
    assert "defect" not in found.stderr and "Traceback" not in found.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("words", [("list",), ("list", "--json"), ("show", "other", "--json")])
def test_a_full_disk_is_an_error_in_one_line(words: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "ws" / "versions").mkdir(parents=True)
    with Path("/dev/full").open("w") as full:
        found = run(*words, "-w", "./ws", folder=tmp_path, stdout=full)
    if words == ("list",):  # nothing is registered: nothing to write
        assert (found.returncode, found.stderr) == (0, "")
    else:
        assert found.returncode == 1
        assert found.stderr.startswith("error: ")
        assert found.stderr.count("\n") == 1


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_who_leaves_a_large_document_early_is_told_by_the_exit_code(unbuffered: str) -> None:
    """Also where Python does not buffer, as in many images of CI."""
    write = f"""
import sys
from prefect_environments.cli import command, output
session = command.Session("", True, True)
work = lambda: output.write_json({{"rows": ["{"x" * 90}"] * 20_000}}) or 0
sys.exit(command._guarded(work, session, False, 1))
"""
    with subprocess.Popen(
        [sys.executable, "-c", write], stdout=subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": unbuffered}
    ) as process:
        assert process.stdout is not None
        process.stdout.read(10)
        process.stdout.close()
    assert process.returncode == 141


def test_a_folder_with_one_file_that_says_nothing_gives_its_own_name(tmp_path: Path) -> None:
    """By the command and by the flow alike; where several say nothing, their names tell them apart."""
    folder = tmp_path / "iris"
    folder.mkdir()
    (folder / "requirements.txt").write_text("alpha\n")
    assert [one.name for one in specifications.read([str(folder)]).definitions] == ["iris"]
    (folder / "churn.txt").write_text("alpha\n")
    assert [one.name for one in read_folder(folder).definitions] == ["churn", "iris"]
    (folder / "environment.yml").write_text("channels: [conda-forge]\ndependencies: [python=3.12]\n")
    assert [one.name for one in read_folder(folder).definitions] == ["churn", "environment", "requirements"]


def test_links_to_nothing_and_to_themselves_are_failures_that_stop_no_other(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("alpha\n")
    (tmp_path / "gone.txt").symlink_to("nowhere")
    (tmp_path / "gone.yml").symlink_to("nowhere")
    (tmp_path / "loop.txt").symlink_to("loop.txt")
    (tmp_path / "names-loop.txt").write_text("-r loop.txt\n")
    found = read_folder(tmp_path)
    assert [one.name for one in found.definitions] == ["good"]
    assert {one.name for one in found.unreadable} >= {"gone", "names-loop"}
    assert all(str(tmp_path) in one.reason for one in found.unreadable)
    assert not any(one.reason.startswith(("gone.txt: ", "gone.yml: ")) for one in found.unreadable), "said once"


def test_a_folder_that_cannot_be_looked_into_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its permissions, as the system tells them to all but root, who may look into everything."""
    for name in ("good", "closed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "requirements.txt").write_text("alpha\n")
    closed, scan = tmp_path / "closed", Path.iterdir

    def refuse(path: Path) -> Iterator[Path]:
        if path == closed:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scan(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    found = read_folder(tmp_path)
    assert [one.name for one in found.definitions] == ["good"]
    (failure,) = found.unreadable
    assert (failure.name, failure.reason) == (
        "closed",
        f"cannot read the folder {closed}: Permission denied; correct its permissions",
    )
    with pytest.raises(SpecificationError, match=r"closed.*Permission denied"):
        specifications.read([str(closed)])

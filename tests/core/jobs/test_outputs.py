"""What is read of a job's outputs folder."""

import json
import os
from pathlib import Path

import pytest

from prefect_environments.core.jobs.outputs import list_files, read_metrics
from prefect_environments.core.redact import MASK, remember


def test_metrics_are_flat_and_fit_for_json(tmp_path: Path) -> None:
    secret = "planted-5ac2190ef7"
    remember(secret)
    (tmp_path / "metrics.json").write_text(
        f'{{"a": 1, "b": {{"c": 0.5, "d": {{"e": true}}}}, "n": NaN, "i": -Infinity, "t": "x {secret}", "l": [1, 2],'
        ' "none": null}'
    )
    found = read_metrics(tmp_path)
    assert found == {"a": 1, "b.c": 0.5, "b.d.e": True, "n": "nan", "i": "-inf", "t": f"x {MASK}", "l": "[1, 2]"}
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff\xfe", b"[" * 100_000, b" " * 2_000_000])
def test_a_file_that_is_no_object_fails_no_job(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "metrics.json").write_bytes(content)
    assert read_metrics(tmp_path) == {}
    assert "metrics.json is not read" in caplog.text


def test_links_and_pipes_are_not_followed(tmp_path: Path) -> None:
    """A job in a container could leave a link to a file of the machine, or a pipe that nobody writes to."""
    (tmp_path / "host.json").write_text('{"host": 1}')
    folder = tmp_path / "outputs"
    folder.mkdir()
    (folder / "metrics.json").symlink_to(tmp_path / "host.json")
    (folder / "model.bin").write_bytes(b"1234")
    assert read_metrics(folder) == {}
    assert [(file.path, file.size) for file in list_files(folder)] == [("model.bin", 4)]
    (folder / "metrics.json").unlink()
    os.mkfifo(folder / "metrics.json")
    assert read_metrics(folder) == {}
    assert read_metrics(tmp_path / "nowhere") == {}

"""`.gitignore` as git has it: git itself is the measure."""

import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_environments.core.jobs.source import source_entries

FILES = ["a", "b.py", "ab.log", "src/a", "src/b.py", "src/lib/a", "src/lib/b.log", "lib/a", "lib/src/b.py", "data/x]", "!odd", "#odd"]  # fmt: skip # noqa: E501
_WORDS = ["*", "**", "a", "b.py", "*.py", "src", "lib", "l?b", "[a-m]*", "[!a]*", "[]x]*", "[[:alpha:]]*", "[![:lower:][:punct:]]*", "x[", "\\!odd", "\\#odd", "*.log"]  # fmt: skip # noqa: E501
_LINES = st.builds(
    lambda mark, first, words, last: mark + first + "/".join(words) + last,
    st.sampled_from(["", "", "!"]),
    st.sampled_from(["", "", "/"]),
    st.lists(st.sampled_from(_WORDS), min_size=1, max_size=3),
    st.sampled_from(["", "", "/", "  "]),
)


def by_git(folder: Path) -> set[str]:
    """What git would take of a folder."""
    listed = ["git", "-C", str(folder), "-c", "core.excludesFile=/dev/null", "ls-files", "--others", "-z"]
    done = subprocess.run([*listed, "--exclude-standard"], check=True, capture_output=True, text=True)
    return {name for name in done.stdout.split("\0") if name}


def ours(folder: Path) -> set[str]:
    return {entry.path for entry in source_entries(folder) if not entry.place.is_dir()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("ignored")
    for name in FILES:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(name)
    subprocess.run(["git", "init", "-q", str(place)], check=True)
    return place


@settings(max_examples=60, deadline=None)
@given(lines=st.lists(_LINES, max_size=5))
def test_any_patterns_leave_out_what_git_leaves_out(folder: Path, lines: list[str]) -> None:
    (folder / ".gitignore").write_text("\n".join(lines))
    assert ours(folder) == by_git(folder)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("*\n!*/\n!*.py\n", {"b.py", "src/b.py", "lib/src/b.py"}),
        ("/*\n!/src/\n", {name for name in FILES if name.startswith("src/")}),
        ("[^[:digit:][:space:]]*/[[:alpha:]_]\n[[:wrong:]]*\n", {*FILES, ".gitignore"} - {"src/a", "lib/a"}),
        ("data\n*.log\r\n/src/**\n", {"a", "b.py", "lib/a", "lib/src/b.py", "!odd", "#odd", ".gitignore"}),
    ],
)
def test_a_list_of_what_is_wanted_brings_back_nothing_else(folder: Path, text: str, kept: set[str]) -> None:
    """Folders that come back bring their own files alone; line ends of Windows are none of the pattern's."""
    (folder / ".gitignore").write_bytes(text.encode())
    assert ours(folder) == kept

"""The documentation does what it says: its code runs, its links lead somewhere, its names exist."""

import ast
import os
import re
import shlex
import struct
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import click
import pytest

from prefect_environments.cli.app import cli
from prefect_environments.core.build.plan import BUDGET
from tests.support.base import BaseLayout
from tests.support.wheels import make_wheel, serve_index

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
DECISIONS = sorted((ROOT / "docs" / "adr").glob("*.md"))
README = (ROOT / "README.md").read_text("utf-8")


def python_of(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The fragments of a page's headings, as the common forges make them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_import_in_the_documentation_works(page: Path) -> None:
    """Each block is whole Python, and what it imports is there."""
    for code in python_of(page):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom):
                module = import_module(str(node.module))
                assert [name.name for name in node.names if not hasattr(module, name.name)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_within_the_repository_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if "://" not in target:
            path, _, fragment = target.partition("#")
            found = (page.parent / path).resolve() if path else page
            assert found.exists(), f"{page.name} links to {target}"
            assert not fragment or fragment in anchors(found), f"{page.name} links to {target}"


def test_the_code_of_the_readme_runs_as_it_stands(tmp_path: Path, base_layout: BaseLayout, prefect_server: str) -> None:
    """All of it, in one script, against a real Prefect server; only the base image is one of this machine."""
    wheels = tmp_path / "wheels"
    make_wheel(wheels, "pip", "25.0")
    make_wheel(wheels, "pandas", "2.2", requires=["numpy"])
    make_wheel(wheels, "numpy", "2.0")
    (tmp_path / "requirements.txt").write_text("pandas\n")
    blocks = python_of(ROOT / "README.md")
    assert len(blocks) == 3
    script = tmp_path / "readme.py"
    script.write_text("\n\n".join(blocks).replace("python:3.12-slim", base_layout.reference), "utf-8")
    with serve_index(wheels) as index:
        env = {**os.environ, "UV_DEFAULT_INDEX": index.url, "PREFECT_API_URL": prefect_server}
        command = [sys.executable, script.name]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    reference, version, again = done.stdout.split()
    folder = tmp_path / "environments" / "images"
    assert re.fullmatch(rf"oci:{re.escape(str(folder))}:environments/iris@sha256:[0-9a-f]{{64}}", reference)
    assert version == "1"
    assert (folder / "blobs" / "sha256" / again.rpartition(":")[2]).is_file()


def test_the_commands_and_names_of_the_readme_exist() -> None:
    """Its make targets, and every task and block of its tables; none is left out."""
    from prefect_environments import blocks, tasks

    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"^    make (\w+)|`make (\w+)`", README, re.MULTILINE))
    assert {one or other for one, other in named} == {"demo", "test", "bench"}
    assert {"demo", "test", "bench"} <= targets
    for table, module in (("task", tasks), ("block", blocks)):
        rows = README.partition(f"| {table} |")[2].partition("\n\n")[0]
        first = [row.split("|")[1] for row in rows.splitlines()[2:]]
        assert sorted(re.findall(r"`(\w+)`", " ".join(first))) == sorted(module.__all__)


def test_the_changelog_keeps_a_changelog() -> None:
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", heading) for heading in headings[1:])
    kinds = set(re.findall(r"^### (.+)$", text, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_each_decision_says_what_led_to_it_and_what_it_costs() -> None:
    assert [int(page.name[:4]) for page in DECISIONS] == list(range(1, len(DECISIONS) + 1))
    for number, page in enumerate(DECISIONS, 1):
        text = page.read_text("utf-8")
        assert text.startswith(f"# {number}. ")
        assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["Context", "Decision", "What it costs"]
        assert len(text.splitlines()) < 60, "a decision is one page"


def test_every_command_line_in_the_documentation_parses() -> None:
    """Commands, options and arguments are those of today."""
    pattern = re.compile(r"^(?:    |.*\$\()?prefect-environments ([^|)\n]+)", re.MULTILINE)
    lines = [line for page in PAGES for line in pattern.findall(page.read_text("utf-8"))]
    assert len(lines) >= 5
    for line in lines:
        command, (name, *words) = cli.commands[shlex.split(line)[0]], shlex.split(line)
        while isinstance(command, click.Group):
            name, *words = words
            command = command.commands[name]
        command.make_context(name, words)


def test_files_that_a_page_names_in_code_style_exist() -> None:
    """A page that names a module which has moved sends its reader nowhere."""
    for page in PAGES:
        named = re.findall(r"`((?:core|tasks|blocks|flows|tests|examples|docs)/[\w/.]+\.\w+)`", page.read_text("utf-8"))
        assert [name for name in named if not (ROOT / name).exists()] == [], page.name


def test_numbers_that_the_documentation_gives_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "adr" / "0003-layers-and-bins.md").read_text("utf-8")
    assert f"at most {BUDGET} layers" in text


def test_the_logo_is_a_small_square_png() -> None:
    """As block types want it: Prefect's interface shows it in a square."""
    content = (ROOT / "docs" / "logo.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", content[16:24])
    assert width == height
    assert 46 <= width <= 999
    assert len(content) < 20_000

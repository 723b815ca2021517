"""Build contexts as data: what the ignore file leaves, compared with what a real engine copies, and its digest."""

import json
import logging
import os
import shutil
import socket
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_environments.core.build.docker.context import context_digest, context_entries, links_out, read_context
from prefect_environments.core.build.docker.ignore import IgnoreRules, Verdict
from prefect_environments.core.build.docker.inputs import BuildInputs, pack_context, stage_context
from prefect_environments.core.errors import SpecificationError
from tests.support.engine import DockerEngine
from tests.support.session import missing

FILES = (
    "Dockerfile",
    "README.md",
    "a/b/c.txt",
    "a/b/deep/d.txt",
    "a/keep.txt",
    "ab",
    "b.txt",
    "data/raw/x.bin",
    "data/raw/y.csv",
    "docs/README.md",
    "docs/api/index.md",
    "src/__pycache__/m.pyc",
    "src/m.py",
    "temp",
    "tempa",
)

# ignore file -> what of FILES is left
RULES = {
    "nothing": ("", FILES),
    "comment and blank": ("# a\n\n  \n", FILES),
    "a file": ("b.txt", [f for f in FILES if f != "b.txt"]),
    "a folder, slashes and spaces": (" /a/ \n./ab\n", [f for f in FILES if not f.startswith("a")]),
    "windows line ends": ("\ufeffab\r\ntemp\r\n", [f for f in FILES if f not in ("ab", "temp")]),
    "dots": ("a/x/../b", [f for f in FILES if not f.startswith("a/b")]),
    "outside and the folder itself": ("../b.txt\n.\n/", FILES),
    "star is one level": ("*.md", [f for f in FILES if f != "README.md"]),
    "star in the middle": ("*/*.md", [f for f in FILES if f != "docs/README.md"]),
    "question mark": ("temp?", [f for f in FILES if f != "tempa"]),
    "class": ("temp[a-c]\n[^b-z]b", [f for f in FILES if f not in ("tempa", "ab")]),
    "two stars": ("**/*.md", [f for f in FILES if not f.endswith(".md")]),
    "two stars before a name": ("**/README.md", [f for f in FILES if not f.endswith("README.md")]),
    "two stars before a folder": ("**/__pycache__", [f for f in FILES if "__pycache__" not in f]),
    "two stars after": ("a/**", [f for f in FILES if not f.startswith("a/")]),
    "two stars between": ("a/**/d.txt", [f for f in FILES if not f.endswith("d.txt")]),
    "two stars without a slash": ("**.txt\nte**", [f for f in FILES if not f.endswith(".txt") and f[:2] != "te"]),
    "all": ("**", []),
    "exception": ("*.md\n!README.md", FILES),
    "exception, then again": ("*\n!a\na/b\n", ["a/keep.txt"]),
    "the last one wins": ("!b.txt\nb.txt", [f for f in FILES if f != "b.txt"]),
    "exception under a folder": ("data\n!data/raw/y.csv", [f for f in FILES if not f.endswith(".bin")]),
    "all but two": ("*\n!src/*.py\n!docs/api", ["docs/api/index.md", "src/m.py"]),
    "all but a deep name": ("*\n!**/keep.txt", ["a/keep.txt"]),
    "all but what a star names": ("*\n!*/m.py\n", ["src/m.py"]),
    "spaces after the mark": ("docs\n! docs/api", [f for f in FILES if f != "docs/README.md"]),
    "escaped": ("\\*\n\\README.m[d]", None),
    "regex characters are plain": ("b+txt\n(a)\na|ab\nb.tx$\n.b", FILES),
    "the Dockerfile": ("Dockerfile", [f for f in FILES if f != "Dockerfile"]),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in FILES:
        path = tmp_path / "context" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "context"


def left(folder: Path, dockerfile_path: str = "Dockerfile") -> list[str]:
    """The files and links of a context, without its ignore file."""
    found = [entry.path for entry in context_entries(folder, dockerfile_path) if entry.kind != "directory"]
    return [path for path in found if path != ".dockerignore"]


@pytest.mark.parametrize(("text", "expected"), RULES.values(), ids=RULES)
def test_an_ignore_file_leaves_what_the_rules_say(folder: Path, text: str, expected: list[str] | None) -> None:
    (folder / ".dockerignore").write_text(text, newline="")
    if expected is None:
        with pytest.raises(SpecificationError, match=r"\.dockerignore line 2: .*backslash"):
            left(folder)
    else:
        assert left(folder) == sorted(expected, key=lambda path: path.split("/"))


@pytest.mark.parametrize("pattern", ["a[", "a[]b]", "[a-", "[-]", "[z-a]", "a\\", "!", "!  ", "\\d", "[^]"])
def test_a_malformed_pattern_is_refused_with_its_line(folder: Path, pattern: str) -> None:
    (folder / ".dockerignore").write_text(f"# first\n{pattern}\n")
    with pytest.raises(SpecificationError, match=r"\.dockerignore line 2: "):
        left(folder)


def test_a_folder_comes_back_only_with_something_in_it(folder: Path) -> None:
    (folder / "src" / "empty").mkdir()
    (folder / ".dockerignore").write_text("*\n!docs/api\n!src/nothing\n")
    found = [(entry.path, entry.kind) for entry in context_entries(folder)]
    assert found == [("docs", "directory"), ("docs/api", "directory"), ("docs/api/index.md", "file")]


def test_an_ignore_file_of_the_dockerfiles_own_counts_instead(folder: Path) -> None:
    (folder / ".dockerignore").write_text("*")
    (folder / "docs" / "D.dockerignore").write_text("*\n!ab\n")
    assert left(folder, "docs/D") == ["ab"]
    assert left(folder, "D") == []


def test_the_dockerfile_and_the_ignore_file_can_be_ignored_as_any_other(folder: Path) -> None:
    (folder / ".dockerignore").write_text("*\n!ab\n")
    assert [entry.path for entry in context_entries(folder)] == ["ab"]


def test_no_ignore_file_leaves_everything_with_git_and_empty_folders(folder: Path) -> None:
    (folder / ".git").mkdir()
    assert [entry.path for entry in context_entries(folder)][:3] == [".git", "Dockerfile", "README.md"]


def test_links_are_kept_as_links_and_never_followed(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "out").symlink_to("/etc")
    (folder / "a" / "up").symlink_to("../../elsewhere")
    (folder / "a" / "in").symlink_to("../b.txt")
    (folder / "loop").symlink_to("loop")
    entries = {entry.path: entry for entry in context_entries(folder)}
    assert [entries[path].kind for path in ("out", "a/up", "a/in", "loop")] == ["link"] * 4
    assert links_out(entries.values()) == ["a/up -> ../../elsewhere", "out -> /etc"]
    with caplog.at_level(logging.WARNING):
        read_context(folder)
    assert "point out of it" in caplog.text
    assert "a/in" not in caplog.text


def test_sockets_and_pipes_are_refused_by_name_unless_ignored(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)  # a socket's path has to be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("run.sock")
    os.mkfifo(folder / "a" / "pipe")
    with pytest.raises(SpecificationError, match=r"a/pipe in the build context is a named pipe"):
        left(folder)
    (folder / ".dockerignore").write_text("a")
    with pytest.raises(SpecificationError, match=r"run\.sock in the build context is a socket"):
        left(folder)
    (folder / ".dockerignore").write_text("a\n*.sock")
    assert "b.txt" in left(folder)


def test_a_name_that_is_not_utf8_is_refused(folder: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff")).write_text("x")
    with pytest.raises(SpecificationError, match="not UTF-8"):
        left(folder)


def test_what_cannot_be_read_is_an_error_unless_ignored() -> None:
    outside = Path(tempfile.mkdtemp(prefix="context-"))  # where another user may go
    try:
        outside.chmod(0o755)
        (outside / "Dockerfile").write_text("FROM a")
        (outside / "secret").touch(0)
        (outside / "closed").mkdir(0)
        as_another_user(lambda: fails(outside, "closed in the build context cannot be read"))
        (outside / ".dockerignore").write_text("closed")
        as_another_user(lambda: fails(outside, "secret in the build context cannot be read"))
        (outside / ".dockerignore").write_text("closed\nsecret")
        as_another_user(lambda: context_digest(outside))
    finally:
        shutil.rmtree(outside)


def fails(folder: Path, reason: str) -> None:
    with pytest.raises(SpecificationError, match=reason):
        context_digest(folder)


def as_another_user(call: Callable[[], object]) -> None:
    """Root may read everything; the others are as we are."""
    if os.geteuid() != 0:
        call()
        return
    os.seteuid(65534)
    try:
        call()
    finally:
        os.seteuid(0)


def test_a_folder_that_is_none_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SpecificationError, match="is not a folder"):
        left(tmp_path / "nothing")


def rename(folder: Path) -> None:
    (folder / "b.txt").rename(folder / "c.txt")


def join(folder: Path) -> None:
    """`a/b` becomes `ab`, with the same content."""
    (folder / "ab").unlink()
    (folder / "a" / "keep.txt").rename(folder / "ab")


def executable(folder: Path) -> None:
    (folder / "ab").chmod(0o755)


def link(folder: Path) -> None:
    (folder / "ab").unlink()
    (folder / "ab").symlink_to("b.txt")


def empty_folder(folder: Path) -> None:
    (folder / "new").mkdir()


def dockerfile(folder: Path) -> None:
    (folder / "Dockerfile").write_text("FROM other")


@pytest.mark.parametrize("change", [rename, join, executable, link, empty_folder, dockerfile])
def test_defect_06_every_change_that_a_build_could_see_is_another_digest(
    folder: Path, change: Callable[[Path], None]
) -> None:
    (folder / "Dockerfile").write_text("FROM a")
    before = context_digest(folder)
    change(folder)
    assert context_digest(folder) != before


def test_a_link_counts_by_its_target(folder: Path) -> None:
    (folder / "Dockerfile").write_text("FROM a")
    digests = set()
    for target in ("b.txt", "temp", "../b.txt"):
        (folder / "link").unlink(missing_ok=True)
        (folder / "link").symlink_to(target)
        digests.add(context_digest(folder))
    assert len(digests) == 3


def test_where_a_context_lies_and_who_may_write_it_does_not_count(folder: Path, tmp_path: Path) -> None:
    (folder / "Dockerfile").write_text("FROM a")
    (folder / ".dockerignore").write_text("*.md\n")
    before = context_digest(folder)
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "ab").chmod(0o600)
    (copy / "a").chmod(0o700)
    (copy / "README.md").write_text("ignored")
    os.utime(copy / "ab", (1, 1))
    assert context_digest(copy) == before


def test_an_ignored_dockerfile_counts_all_the_same(folder: Path) -> None:
    (folder / ".dockerignore").write_text("*\n")
    (folder / "Dockerfile").write_text("FROM a")
    before = context_digest(folder)
    (folder / "Dockerfile").write_text("FROM b")
    assert context_digest(folder) != before


NAMES = st.lists(st.sampled_from(["a", "b", "ab", "a.b", "c"]), min_size=1, max_size=3).map("/".join)
PATTERNS = st.lists(st.sampled_from(["a", "b", "*", "**", "?", "!", "/", ".", "[ab]", "a*", "**/"]), max_size=4).map(
    "".join
)


@given(st.lists(PATTERNS, max_size=4), NAMES)
def test_rules_asked_folder_by_folder_say_the_same_as_the_whole_walk(lines: list[str], name: str) -> None:
    try:
        rules = IgnoreRules("\n".join(lines))
    except SpecificationError:
        return
    verdict: Verdict | None = None
    reachable = True
    for depth in range(name.count("/") + 1):
        path = "/".join(name.split("/")[: depth + 1])
        parent, verdict = verdict, rules.of(path, verdict)
        reachable = reachable and (parent is None or not parent.ignored or rules.reach_into(path.rpartition("/")[0]))
    assert verdict is not None
    assert reachable or verdict.ignored  # what a walk does not reach is ignored


@given(st.text(max_size=20))
def test_any_ignore_file_is_read_or_refused_within_the_error_tree(text: str) -> None:
    try:
        IgnoreRules(text).of("a/b")
    except SpecificationError as error:
        assert ".dockerignore line" in str(error)


# -- a real engine ------------------------------------------------------------------------------------------------

ENGINE_RULES = (
    "# what a real engine is asked\n*.md\n!README.md\n**/__pycache__\ndata\n!data/raw/y.csv\n/temp?\na/b/\n!a/b/deep\n"
    "./docs/*/../api/\nDockerfile\n"
)


@pytest.fixture(params=["classic", "buildkit"])
def build(request: pytest.FixtureRequest, docker_engine: DockerEngine) -> Iterator[Callable[..., None]]:
    """Runs `docker build` with one of the builders."""
    buildkit = request.param == "buildkit"
    variables = {**os.environ, **docker_engine.environment, "DOCKER_BUILDKIT": str(int(buildkit))}
    places = os.environ["PATH"].split(os.pathsep)
    commands = [found for place in places if (found := shutil.which("docker", path=place))]

    def run(*words: "str | Path", stdin: bytes | None = None) -> None:
        said = []
        for command in commands:  # a client without its buildx plugin has no BuildKit
            line = [command, "build", "--quiet", *map(str, words)]
            done = subprocess.run(line, env=variables, input=stdin, capture_output=True, check=False)
            if done.returncode == 0:
                return
            said.append(done.stderr.decode())
        if buildkit and all("buildx" in text for text in said):
            missing("no docker command has BuildKit")
        raise AssertionError(said)

    run.builder = request.param  # type: ignore[attr-defined]
    yield run


def copied(engine: DockerEngine, tag: str, scratch: Path) -> dict[str, str]:
    """What `COPY . /x` brought: path -> content, or a link's target."""
    engine.docker("save", "--output", scratch / "image.tar", tag)
    found = {}
    with tarfile.open(scratch / "image.tar") as image:
        manifest = image.extractfile("manifest.json")
        assert manifest
        for name in json.load(manifest)[0]["Layers"]:
            with tarfile.open(fileobj=image.extractfile(name)) as layer:
                for member in layer:
                    if not member.isdir():
                        file = layer.extractfile(member) if member.isfile() else None
                        found[member.name.removeprefix("x/")] = file.read().decode() if file else member.linkname
    return found


def expected(folder: Path) -> dict[str, str]:
    entries = [entry for entry in context_entries(folder) if entry.kind != "directory"]
    return {entry.path: entry.target or Path(entry.source).read_text() for entry in entries}


def prepare(folder: Path) -> None:
    (folder / "Dockerfile").write_text("FROM scratch\nCOPY . /x\n")
    (folder / ".dockerignore").write_text(ENGINE_RULES)
    (folder / "src" / "link").symlink_to("../b.txt")
    (folder / "out").symlink_to("../../outside")


def test_a_context_is_what_a_real_build_copies(
    folder: Path, docker_engine: DockerEngine, build: Callable[..., None]
) -> None:
    prepare(folder)
    tag = f"context-{build.builder}"  # type: ignore[attr-defined]
    build("--tag", tag, folder)
    found = copied(docker_engine, tag, folder.parent)
    assert found == expected(folder)
    assert {"README.md", "data/raw/y.csv", "a/b/deep/d.txt", "src/link", "out"} < set(found)


def test_our_packed_context_gives_the_build_the_same_files(
    folder: Path, docker_engine: DockerEngine, build: Callable[..., None]
) -> None:
    prepare(folder)
    inputs = BuildInputs("FROM scratch\nCOPY . /x\n", folder)
    tag = f"packed-{build.builder}"  # type: ignore[attr-defined]
    if tag == "packed-classic":
        with (folder.parent / "context.tar").open("w+b") as out:
            pack_context(inputs, out)
        build("--tag", tag, "-", stdin=(folder.parent / "context.tar").read_bytes())
    else:
        (folder.parent / "staged").mkdir()
        context, dockerfile_path = stage_context(inputs, folder.parent / "staged")
        build("--tag", tag, f"--file={dockerfile_path}", context)
    assert copied(docker_engine, tag, folder.parent) == expected(folder)

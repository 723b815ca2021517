"""Dockerfiles as data: text or path, instructions, and the images that a build reads."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_environments.core.build.docker import dockerfile
from prefect_environments.core.build.docker.dockerfile import from_images, is_dockerfile_text, parse, read_dockerfile
from prefect_environments.core.build.docker.expansion import expand
from prefect_environments.core.errors import SpecificationError
from prefect_environments.core.lock.target import Platform

IMAGES = {
    "one": ("FROM python:3.12", ["python:3.12"]),
    "case, spaces, comment": ("# text\n\n  from\tpython:3.12  \nrun x", ["python:3.12"]),
    "digest": (f"FROM h.example.com:5000/a/b@sha256:{'0' * 64}", [f"h.example.com:5000/a/b@sha256:{'0' * 64}"]),
    "scratch": ("FROM scratch", []),
    "platform flag": ("FROM --platform=$BUILDPLATFORM a:1 AS x", ["a:1"]),
    "stage name": ("FROM a:1 AS Base\nFROM base", ["a:1"]),
    "an earlier stage only": ("FROM b AS c\nFROM a AS b\nCOPY --from=c / /", ["b", "a"]),
    "copy from image": ("FROM a\nCOPY --chown=1:1 --from=tools:2 /x /y", ["a", "tools:2"]),
    "copy from stage": ("FROM a AS Build\nFROM b\nCOPY --from=BUILD /x /y", ["a", "b"]),
    "copy from number": ("FROM a\nFROM b\nCOPY --from=0 /x /y", ["a", "b"]),
    "copy from a later stage": ("FROM a AS x\nCOPY --from=y / /\nFROM b AS y\nFROM x", ["a", "b"]),
    "copy from scratch": ("FROM a\nCOPY --from=scratch / /", ["a"]),
    "mount": ("FROM a\nRUN --mount=type=bind,from=b:1,target=/b --mount=type=cache,target=/c ls", ["a", "b:1"]),
    "mount of a stage": ("FROM a AS x\nFROM b\nRUN --mount=from=X,target=/x ls", ["a", "b"]),
    "quoted mount": ('FROM a\nRUN --mount="type=bind,from=b" ls', ["a", "b"]),
    "mount in the command": ("FROM a\nRUN echo --mount=from=b", ["a"]),
    "not needed": ("FROM a AS x\nFROM b AS y\nFROM c", ["c"]),
    "default argument": ("ARG V=3.12\nFROM python:${V}", ["python:3.12"]),
    "argument of argument": ('ARG V=3 W="${V}.1"\nARG I=p:$W\nFROM $I', ["p:3.1"]),
    "no value, valid name": ("ARG S\nFROM python$S", ["python"]),
    "undeclared": ("FROM python:3${NOTHING}", ["python:3"]),
    "default of a form": ("FROM python:${V:-3.12}", ["python:3.12"]),
    "alternative of a form": ("ARG GPU=1\nFROM base${GPU:+-gpu}:1", ["base-gpu:1"]),
    "an argument inside a stage": ("ARG V=1\nFROM a:$V\nARG V=2\nFROM b:$V\nCOPY --from=0 / /", ["a:1", "b:1"]),
    "target argument": ("FROM a-$TARGETARCH", ["a-amd64"]),
    "continuation": ("FROM \\\n  # why\n\n  a:1 \\  \n AS x", ["a:1"]),
    "no continuation after two": ("FROM a\nRUN echo \\\\\nCOPY --from=b / /", ["a", "b"]),
    "escape directive": ("# escape=`\nFROM `\n a:1\nRUN dir C:\\\nCOPY --from=b / /", ["a:1", "b"]),
    "late directive": ("FROM a\n# escape=`\nRUN x \\\n FROM b", ["a"]),
    "syntax": ("# syntax=docker/dockerfile:1.7\nFROM a", ["docker/dockerfile:1.7", "a"]),
    "syntax after a comment": ("# hello\n# syntax=docker/dockerfile:1.7\nFROM a", ["a"]),
    "heredoc": ("FROM a\nRUN <<EOF\nFROM b\nEOF\nCOPY --from=c / /", ["a", "c"]),
    "quoted heredoc": ("FROM a\nRUN cat <<-'X Y' > /z\nFROM b\n\tX Y\n", ["a"]),
    "two heredocs": ("FROM a\nCOPY <<one <<two /x/\nFROM b\none\nFROM c\ntwo\nCOPY --from=d / /", ["a", "d"]),
    "no heredoc": ('FROM a\nRUN cat <<< x; echo $((1<<2)) "<<EOF"\nCOPY --from=c / /', ["a", "c"]),
    "heredoc in JSON": ('FROM a\nRUN ["cat", "<<EOF"]\nCOPY --from=c / /', ["a", "c"]),
    "onbuild of a stage": ("FROM a AS x\nONBUILD COPY --from=b / /\nFROM x", ["a", "b"]),
    "onbuild of the result": ("FROM a\nONBUILD COPY --from=b / /", ["a"]),
    "each once": ("FROM a AS x\nFROM a\nCOPY --from=x / /\nCOPY --from=a / /", ["a"]),
    "windows file": ("\ufeffFROM a\r\nCOPY \\\r\n --from=b / /\r\n", ["a", "b"]),
}


@pytest.mark.parametrize(("text", "images"), IMAGES.values(), ids=IMAGES)
def test_images_of_a_build_are_found(text: str, images: list[str]) -> None:
    assert list(from_images(text, {})) == images


def test_given_arguments_win_over_defaults_and_count_only_where_declared() -> None:
    text = "ARG V=1\nARG W\nFROM a:$V\nCOPY --from=0 / /\nFROM b:${W}${X}"
    assert from_images(text, {"V": "2", "W": "3", "X": "4"}) == ("b:3",)
    assert from_images("ARG V=1\nFROM a:$V", {"V": "2"}) == ("a:2",)


def test_the_frontend_is_an_image_also_where_an_argument_names_it() -> None:
    assert from_images("# syntax=d/d:1\nFROM a", {"BUILDKIT_SYNTAX": "d/d:2"}) == ("d/d:2", "a")


def test_a_target_needs_only_its_own_stages() -> None:
    text = "FROM a AS x\nFROM b AS Y\nCOPY --from=x / /\nFROM c"
    assert from_images(text, {}, "x") == ("a",)
    assert from_images(text, {}, "y") == ("a", "b")
    assert from_images(text, {}) == ("c",)


def test_the_platform_is_that_of_the_build() -> None:
    assert from_images("FROM a-$TARGETARCH", {}, platform=Platform("arm64")) == ("a-arm64",)


REFUSED = {
    "no FROM": ("ARG X=1", "no FROM"),
    "empty": ("# only a comment", "no FROM"),
    "nothing": (" \n", "empty"),
    "path as text": ("docker/Dockerfile\n", "line 1: DOCKER/DOCKERFILE: there is no such instruction"),
    "before FROM": ("RUN x\nFROM a", "line 1: RUN: comes before the first FROM"),
    "FROM of nothing": ("FROM", "it takes an image"),
    "three words": ("FROM a\n\nFROM a b c", "line 3: FROM: it takes"),
    "stage name": ("FROM a AS 1x", "no stage name"),
    "empty argument": ("ARG X\nFROM ${X}", "ARG NAME=DEFAULT"),
    "bad reference": ("FROM a:b:c", "line 1: FROM: tag"),
    "required argument": ("ARG X\nFROM ${X:?give}", "the build argument X has no value: give"),
    "open bracket": ("FROM ${X", "closing }"),
    "open quote": ('FROM "a', "closing"),
    "machine's own": ("FROM a-${BUILDARCH}", "depends on the machine"),
    "no such number": ("FROM a\nCOPY --from=1 / /", "line 2: COPY: there is no stage number 1"),
    "itself": ("FROM a AS x\nCOPY --from=x / /", "the stage needs itself"),
    "circle": ("FROM a AS x\nCOPY --from=y / /\nFROM x AS y", "the stage needs itself"),
    "variable": ("FROM a\nCOPY --from=$X / /", "takes no variables"),
    "variable in a mount": ("FROM a\nRUN --mount=from=${X} ls", "takes no variables"),
    "flag without value": ("FROM a\nCOPY --from b /x /y", "write --from=…"),
    "open heredoc": ("FROM a\nRUN <<EOF\nls", "line 2: RUN: the here-document <<EOF"),
    "escape": ("# escape=x\nFROM a", "escape directive"),
    "two directives": ("# syntax=a\n# syntax=b\nFROM a", "two syntax directives"),
    "syntax": ("# syntax=A B\nFROM a", "the syntax directive"),
}


@pytest.mark.parametrize(("text", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_no_engine_could_build_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(SpecificationError) as refused:
        from_images(text, {})
    assert reason in str(refused.value)


def test_an_unknown_target_is_refused_with_the_stages_that_there_are() -> None:
    with pytest.raises(SpecificationError, match="no stage 'z' to build; its named stages: x, y"):
        from_images("FROM a AS x\nFROM b AS y\nFROM c", {}, "z")


VALUES = {"A": "aXbXc", "E": "", "P": "/x/y.tar.gz", "S": "a*b"}
EXPANSIONS = {
    "$A.": "aXbXc.",
    "${A}B": "aXbXcB",
    "$N|${N}": "|",
    "${E:-d}${E-d}": "d",
    "${N:-d}${N-d}": "dd",
    "${E:+d}${E+d}${N+d}": "d",
    "${N:-${E:-$A}}": "aXbXc",
    "${A:?x}${E?x}": "aXbXc",
    "'$A'": "$A",
    '"$A"': "aXbXc",
    r"\$A": "$A",
    r'"\$A \x"': r"$A \x",
    "$": "$",
    "${A#*X}": "bXc",
    "${A##*X}": "c",
    "${A%X*}": "aXb",
    "${A%%X*}": "a",
    "${A#?}": "XbXc",
    "${A#[a]}": "aXbXc",
    r"${S#a\*}": "b",
    "${P##*/}": "y.tar.gz",
    "${A/X/-}": "a-bXc",
    "${A//X/-}": "a-b-c",
    "${A//X*/-}": "a-",
}


@pytest.mark.parametrize(("text", "value"), EXPANSIONS.items(), ids=EXPANSIONS)
def test_variables_are_replaced_as_the_reference_says(text: str, value: str) -> None:
    assert expand(text, VALUES) == value


@pytest.mark.parametrize("text", ["${", "${}", "${A", "${:-x}", "${A:x}", "${A!}", "${A:", "${N?}", "${A/x", "'", '"'])
def test_malformed_replacements_are_errors(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        expand(text, VALUES)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("FROM python:3.12", True),
        ("from x", True),
        ("# a comment", True),
        ("\ufeffARG X=1", True),
        ("docker/Dockerfile\n", True),
        ("Dockerfile", False),
        ("FROM", False),
        ("from/Dockerfile", False),
        ("FROMAGE x", False),
        ("", False),
    ],
)
def test_text_and_path_are_told_apart(value: str, text: bool) -> None:
    assert is_dockerfile_text(value) is text


def test_defect_01_a_mistyped_path_is_an_error_and_never_text(tmp_path: Path) -> None:
    with pytest.raises(
        SpecificationError, match=r"no Dockerfile is at '.*Dockerfil'.*text is recognised by"
    ) as refused:
        read_dockerfile(str(tmp_path / "Dockerfil"))
    assert "FROM python" in str(refused.value)


def test_a_path_object_is_a_path_even_if_it_looks_like_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FROM x").write_text("FROM y\n")
    assert read_dockerfile(Path("FROM x")) == "FROM y\n"
    assert read_dockerfile("FROM x") == "FROM x"


def test_a_byte_order_mark_and_windows_line_ends_are_read_away(tmp_path: Path) -> None:
    (tmp_path / "D").write_bytes(b"\xef\xbb\xbfFROM a\r\nRUN x\r\n")
    assert read_dockerfile(tmp_path / "D") == "FROM a\nRUN x\n"
    assert read_dockerfile(str(tmp_path / "D")) == read_dockerfile("\ufeffFROM a\r\nRUN x\r\n")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("FROM ä".encode("utf-16"), "not UTF-8"),
        (b"FROM a\0", "not text"),
        (b"", "empty"),
        (b"#" * (dockerfile.LIMIT + 1), "more than 1,048,576 bytes"),
    ],
)
def test_files_that_are_no_dockerfile_are_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "D").write_bytes(content)
    with pytest.raises(SpecificationError, match=reason):
        read_dockerfile(tmp_path / "D")


def test_too_long_a_text_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecificationError, match="more than"):
        read_dockerfile("# \n" * (dockerfile.LIMIT // 3 + 1))
    with pytest.raises(SpecificationError, match="no Dockerfile is at"):
        read_dockerfile(tmp_path)
    with pytest.raises(SpecificationError, match=r"cannot be read|no Dockerfile is at"):
        read_dockerfile("x\0y")
    with pytest.raises(SpecificationError, match=r"cannot be read|no Dockerfile is at"):
        read_dockerfile("x" * 5000)


PIECES = st.sampled_from(
    (
        *("FROM ", "ARG ", "COPY --from=", "RUN --mount=", "ONBUILD ", "a:1", " AS ", "x", "$X", "${X:-", "}", "<<E"),
        *("E", "\n", "\\\n", "# escape=`\n", "# syntax=", "'", '"', "0", ",from=", "=", "[", " ", "#", "/", "\t", "\\"),
    )
)


@given(st.lists(PIECES | st.text(max_size=3), max_size=30).map("".join))
def test_any_text_is_read_or_refused_within_the_error_tree(text: str) -> None:
    try:
        found = from_images(text, {"X": "b:2"})
    except SpecificationError:
        return
    assert all(isinstance(name, str) and name and name != "scratch" for name in found)


@given(st.lists(st.sampled_from("abcXY*?[]\\/$"), max_size=8).map("".join), st.text("abXY", max_size=8))
def test_any_pattern_takes_away_one_end_or_is_refused(pattern: str, value: str) -> None:
    for form in ("#", "##", "%", "%%"):
        try:
            left = expand(f"${{V{form}{pattern}}}", {"V": value})
        except ValueError:
            continue
        assert value.endswith(left) if "#" in form else value.startswith(left)


def test_instructions_keep_their_line_numbers() -> None:
    found = parse("FROM a\n# x\nRUN <<E\n1\nE\nENV A=1 \\\n B=2\nCMD x").instructions
    assert [(one.name, one.line) for one in found] == [("FROM", 1), ("RUN", 3), ("ENV", 6), ("CMD", 8)]

"""Files: nesting, encodings, local paths and bounds."""

import codecs
import os
from pathlib import Path

import pytest

from prefect_environments.core.errors import RequirementsError
from prefect_environments.core.formats.requirements import Requirements, parse, read


def write(folder: Path, files: dict[str, str]) -> Path:
    """Write the files and hand back the first one's path."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder / next(iter(files))


def test_nested_files_count_from_the_file_that_names_them(tmp_path: Path) -> None:
    top = write(
        tmp_path,
        {
            "top.txt": "-r sub/base.txt\n-c limits.txt\na",
            "sub/base.txt": "b\n-r../other.txt",
            "other.txt": "--requirement=sub/deep/more.txt\nc",
            "sub/deep/more.txt": "d",
            "limits.txt": "a<2\n-c sub/limits.txt\n-r sub/installs.txt",
            "sub/limits.txt": "b<3",
            "sub/installs.txt": "e",
        },
    )
    assert read(top) == Requirements(packages=("a", "b", "c", "d", "e"), constraints=("a<2", "b<3"))
    assert parse(["-r top.txt"], folder=tmp_path) == read(top)
    assert parse([f"-r {(tmp_path / 'top.txt').as_uri()}"], folder=tmp_path / "sub") == read(top)


def test_a_relative_path_is_read_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"top.txt": "-r sub/b.txt\n./p", "sub/b.txt": "b", "p/pyproject.toml": ""})
    monkeypatch.chdir(tmp_path)
    assert read(Path("top.txt")).packages == ("b", (tmp_path / "p").as_uri())


def test_a_cycle_is_refused_and_named_in_order(tmp_path: Path) -> None:
    top = write(tmp_path, {"a.txt": "-r b.txt", "b.txt": "x\n-c ./a.txt"})
    with pytest.raises(RequirementsError, match=r"b\.txt:2: .*leads back to itself.*: a\.txt -> b\.txt -> a\.txt$"):
        read(top)


def test_a_cycle_through_a_symlink_is_refused(tmp_path: Path) -> None:
    top = write(tmp_path, {"a.txt": "-r link.txt"})
    (tmp_path / "link.txt").symlink_to(top)
    with pytest.raises(RequirementsError, match=r"a\.txt -> link\.txt$"):
        read(top)


def test_the_same_file_may_be_named_twice(tmp_path: Path) -> None:
    top = write(tmp_path, {"a.txt": "-r b.txt\n-r b.txt\n-c b.txt", "b.txt": "x"})
    assert read(top) == Requirements(packages=("x",), constraints=("x",))


def test_a_missing_file_is_refused_with_the_chain_that_names_it(tmp_path: Path) -> None:
    top = write(tmp_path, {"a.txt": "-r sub/b.txt", "sub/b.txt": "\n-c gone.txt"})
    with pytest.raises(RequirementsError, match=r"b\.txt:2: .*no such file.*a\.txt -> sub/b\.txt -> sub/gone\.txt$"):
        read(top)
    with pytest.raises(RequirementsError, match=r"no such file.*gone\.txt$"):
        read(tmp_path / "gone.txt")


def test_a_nested_url_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequirementsError, match=r":1: .*may change unseen"):
        parse(["-c https://host.example/constraints.txt"], folder=tmp_path)


def test_a_folder_and_a_pipe_are_not_read_as_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(RequirementsError, match="not a regular file"):
            read(path)


def test_bounds_on_size_depth_and_count(tmp_path: Path) -> None:
    large = tmp_path / "large.txt"
    large.write_bytes(b"#" * (10 * 1024 * 1024 + 1))
    with pytest.raises(RequirementsError, match=r"larger than 10,485,760 bytes: .*large\.txt"):
        read(large)
    with pytest.raises(RequirementsError, match="10,485,760 characters"):
        parse(["#" * (10 * 1024 * 1024 + 1)])
    chain = {f"{n}.txt": f"-r {n + 1}.txt" for n in range(21)} | {"21.txt": "x"}
    write(tmp_path, chain)
    assert read(tmp_path / "1.txt").packages == ("x",)
    with pytest.raises(RequirementsError, match="deeper than 20"):
        read(tmp_path / "0.txt")
    write(tmp_path, {f"w{n}.txt": f"-r w{n + 1}.txt\n" * 2 for n in range(15)} | {"w15.txt": "x"})
    with pytest.raises(RequirementsError, match="1,000 files"):
        read(tmp_path / "w0.txt")


@pytest.mark.parametrize("bom", [codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE])
def test_a_byte_order_mark_tells_the_encoding(tmp_path: Path, bom: bytes) -> None:
    name = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
    path = tmp_path / "r.txt"
    path.write_bytes(bom + "numpy # größer\r\npandas\r\n".encode(name.get(bom, "utf-32-le")))
    assert read(path).packages == ("numpy", "pandas")


def test_a_coding_comment_tells_the_encoding(tmp_path: Path) -> None:
    path = tmp_path / "r.txt"
    path.write_bytes("#!/x\n# -*- coding: latin-1 -*-\nnumpy # größer".encode("latin-1"))
    assert read(path).packages == ("numpy",)
    path.write_bytes(b"# coding: rot13\nahzcl")
    with pytest.raises(RequirementsError, match=r"r\.txt:1: .*coding comment"):
        read(path)


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b"a\nb\n# gr\xf6\xdfer", "r.txt:3: the byte at offset 8 is not UTF-8"),
        (b"a\rb\r\n\xff", "r.txt:3: the byte at offset 5 is not UTF-8"),
        (codecs.BOM_UTF16_LE + b"a\0\n\0b", "r.txt:2: the byte at offset 6 is not UTF-16-LE"),
    ],
)
def test_undecodable_bytes_are_named_by_file_line_and_offset(tmp_path: Path, content: bytes, place: str) -> None:
    path = tmp_path / "r.txt"
    path.write_bytes(content)
    with pytest.raises(RequirementsError, match=place) as caught:
        read(path)
    assert caught.value.__context__ is None


def test_local_paths_become_absolute_from_the_file_that_names_them(tmp_path: Path) -> None:
    top = write(
        tmp_path,
        {
            "top.txt": "-r sub/r.txt\n-f wheels",
            "sub/r.txt": "./p_q-1.0-py3-none-any.whl\nfile:../lib#egg=Lib_X&subdirectory=s\nx @ ../lib\n../a b\n-f .\n",
            "sub/p_q-1.0-py3-none-any.whl": "",
            "lib/s/pyproject.toml": "",
            "a b/pyproject.toml": "",
            "wheels/x": "",
        },
    )
    root = tmp_path.as_uri()
    found = read(top)
    assert found.packages == (
        f"{root}/a%20b",
        f"{root}/lib#egg=lib-x&subdirectory=s",
        f"p-q @ {root}/sub/p_q-1.0-py3-none-any.whl",
        f"x @ {root}/lib",
    )
    assert found.find_links == (f"{root}/sub", f"{root}/wheels")
    assert parse(found.packages).packages == found.packages


@pytest.mark.parametrize("line", ["./gone", "foo/bar", "gone.whl", "x @ ./gone", "-f ./gone", "./" + "x" * 5_000])
def test_a_relative_path_that_does_not_exist_is_refused_where_it_is_named(tmp_path: Path, line: str) -> None:
    with pytest.raises(RequirementsError, match=r":1: .*no such file or folder"):
        parse([line], folder=tmp_path)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("a[x]<2", "extras"),
        ("https://host.example/a.zip", "needs a name"),
        ("-e git+https://host.example/r#egg=a", "editable"),
    ],
)
def test_a_constraint_is_a_plain_named_requirement(tmp_path: Path, line: str, reason: str) -> None:
    top = write(tmp_path, {"a.txt": "-c c.txt", "c.txt": line})
    with pytest.raises(RequirementsError, match=rf"c\.txt:1: .*{reason}"):
        read(top)


def test_a_constraint_may_be_a_named_url(tmp_path: Path) -> None:
    top = write(tmp_path, {"a.txt": "-c c.txt", "c.txt": "a @ https://[::1]/a.zip\nhttps://host.example/r#egg=b"})
    assert read(top).constraints == ("a @ https://[::1]/a.zip", "https://host.example/r#egg=b")

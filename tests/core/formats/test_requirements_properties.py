"""Property tests: what must not matter doesn't, and nothing but our own errors comes out, whatever goes in."""

import codecs
import tempfile
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from prefect_environments.core.errors import RequirementsError
from prefect_environments.core.formats.requirements import Requirements, parse, read

NAMES = st.from_regex(r"[a-z][a-z0-9]{0,5}(-[a-z0-9]{1,4}){0,2}", fullmatch=True)
SPECIFIERS = st.lists(
    st.sampled_from(["==1.0", ">=0.9", "<3", "!=1.5.*", "~=1.2", ">=2.0rc1"]), max_size=3, unique=True
)
MARKERS = st.sampled_from(["", 'python_version < "3.12"', 'sys_platform == "linux" and os_name == "posix"'])
EXTRAS = st.lists(st.sampled_from(["dev", "test-all", "gpu"]), max_size=3, unique=True)
REQUIREMENTS = st.lists(st.tuples(NAMES, EXTRAS, SPECIFIERS, MARKERS), min_size=1, max_size=6)
Asked = tuple[str, list[str], list[str], str]
ENCODINGS = {
    "utf-8": b"",
    "utf-8-sig": b"",
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
}


def plain(asked: Asked) -> str:
    name, extras, specifiers, marker = asked
    return name + (f"[{','.join(extras)}]" if extras else "") + ",".join(specifiers) + (f"; {marker}" if marker else "")


@st.composite
def respelled(draw: st.DrawFn, asked: Asked) -> str:
    """The same requirement as another author would write it."""

    def name(text: str) -> str:
        letters = (draw(st.sampled_from([c.lower(), c.upper()])) for c in text)
        return "".join(draw(st.sampled_from(["-", "_", ".", "--", "-_."])) if c == "-" else c for c in letters)

    space = st.sampled_from(["", " ", "\t", "  ", " \\\n "])
    text = name(asked[0]) + draw(space)
    if asked[1]:
        text += f"[{draw(space)}{(draw(space) + ',' + draw(space)).join(map(name, draw(st.permutations(asked[1]))))}]"
    text += draw(space) + f"{draw(space)},{draw(space)}".join(draw(st.permutations(asked[2])))
    if asked[3]:
        text += f"{draw(space)};{draw(space)}" + asked[3].replace('"', draw(st.sampled_from(["'", '"'])))
    return draw(st.sampled_from(["", " "])) + text + draw(st.sampled_from(["", " ", "  # näh, why", " # -r x"]))


@settings(deadline=None)
@given(st.data(), REQUIREMENTS, st.sampled_from(sorted(ENCODINGS)), st.sampled_from(["\n", "\r\n", "\r"]))
def test_order_case_spelling_comments_line_ends_and_encodings_do_not_matter(
    data: st.DataObject, asked: list[Asked], encoding: str, end: str
) -> None:
    written = [data.draw(respelled(one)) for one in data.draw(st.permutations(asked))]
    noise = st.lists(st.sampled_from(["", "# note", "   ", "\t#\\"]), max_size=2)
    lines = [line for one in written for line in (*data.draw(noise), one, *data.draw(noise))]
    content = ENCODINGS[encoding] + end.join(lines).replace("\n", end).encode(encoding)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "r.txt")
        path.write_bytes(content.replace(b"\r\r\n", b"\r\n") if encoding.startswith("utf-8") else content)
        assert read(path) == parse([plain(one) for one in asked])


@settings(deadline=None)
@given(REQUIREMENTS)
def test_reading_what_was_read_changes_nothing(asked: list[Asked]) -> None:
    once = parse([plain(one) for one in asked])
    assert parse(once.packages) == once
    assert len(once.packages) == len(set(once.packages))


FRAGMENTS = r"""
-r -e -c -i -f --pre --hash= --index-url= --extra-index-url --no-binary --only-binary :all: = == ~= >= ; , @ # [ ] ( )
' " \ / . .. ./x %00 %zz ${HOME} ${NOT_SET} {{ }} a-b A_b 1.0 1.* * $ ! : :// https:// https://[ file: file:/// git+
git+ssh://git@ user:pw@ host.example [::1] :99999 .whl a-1-py3-none-any.whl .tar.gz #egg= &subdirectory= sha256:
python_version extra 'x' and or not in
"""
PIECES = st.sampled_from(FRAGMENTS.split())
LINES = st.one_of(st.text(max_size=60), st.lists(PIECES | st.sampled_from([" ", "\t", "\n"]), max_size=12).map("".join))


def read_or_refused(run: Callable[[], Requirements]) -> None:
    """Whatever is read has one spelling, which is read again as itself; whatever is refused is our error alone."""
    try:
        found = run()
    except RequirementsError as error:
        assert error.__cause__ is None
        assert error.__context__ is None
    else:
        assert parse(found.packages).packages == found.packages


@settings(max_examples=600, deadline=None)
@example(lines=["https://[", "-i https://[::1", "x; " + "(" * 3_000, "a==" + "9" * 5_000], with_folder=False)
@given(
    lines=st.lists(LINES | st.text(st.characters(codec=None, exclude_categories=[]), max_size=20), max_size=4),
    with_folder=st.booleans(),
)
def test_arbitrary_text_is_read_or_refused(lines: list[str], with_folder: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        read_or_refused(lambda: parse(lines, folder=Path(folder) if with_folder else None))
        for line in lines:
            read_or_refused(lambda line=line: parse([line]))  # type: ignore[misc]


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(
        [b"", codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE, b"# coding: "]
    ),
    st.binary(max_size=80) | LINES.map(lambda text: text.encode("utf-8", "surrogatepass")),
)
def test_arbitrary_bytes_are_read_or_refused(start: bytes, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "r.txt")
        path.write_bytes(start + content)
        read_or_refused(lambda: read(path))


@settings(deadline=None)
@given(st.text(alphabet="abcXYZ019-._~!$&'()*+,;=%/?#:@ ", min_size=1, max_size=30))
def test_no_password_is_stored_or_shown(noise: str) -> None:
    secret = f"PW0{noise}PW1"
    for line in (f"-i https://user:{secret}@host.example/simple", f"name @ git+https://u:{secret}@host.example/r"):
        try:
            shown = repr(parse([line]))
        except RequirementsError as error:
            shown = str(error)
        assert "PW0" not in shown
        assert "PW1" not in shown

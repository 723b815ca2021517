"""The YAML loader: text stays as written, everything knows its line, and nothing hostile gets through."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from prefect_environments.core.errors import SpecificationError
from prefect_environments.core.formats import yaml_text
from prefect_environments.core.formats.yaml_text import Table, Text


def table(text: str | bytes) -> Table:
    found = yaml_text.parse(text, "env.yml")
    assert isinstance(found, Table)
    return found


@pytest.mark.parametrize(
    ("written", "text", "kind"),
    [
        ("1.10", "1.10", "float"),
        ("3.10", "3.10", "float"),
        ("007", "007", "int"),
        ("1_000", "1_000", "int"),
        ("no", "no", "bool"),
        ("2024-01-02", "2024-01-02", "timestamp"),
        ("12:30:45", "12:30:45", "int"),
        ("=", "=", "str"),
        ("'1.10'", "1.10", "str"),
        ('"null"', "null", "str"),
        ("python=3.10", "python=3.10", "str"),
    ],
)
def test_a_scalar_is_the_text_in_the_file(written: str, text: str, kind: str) -> None:
    found = table(f"# first\nkey: {written}\n").get("key")
    assert (found, found.kind, found.line) == (text, kind, 2)


@pytest.mark.parametrize("written", ["", "~", "null"])
def test_null_is_none_and_its_key_still_has_a_line(written: str) -> None:
    found = table(f"a: 1\nkey: {written}\n")
    assert found.get("key", "absent") is None
    assert found.line_of("key") == 2


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_files_of_all_encodings_with_windows_line_ends_are_read(encoding: str) -> None:
    assert yaml_text.plain(table("name: größe\r\nlist:\r\n- 1.0\r\n".encode(encoding))) == {
        "name": "größe",
        "list": ["1.0"],
    }


def test_merge_keys_fill_in_what_a_mapping_does_not_say() -> None:
    found = table("base: &base {a: 1, b: 2}\nmine:\n  <<: *base\n  b: 3\n").get("mine")
    assert yaml_text.plain(found) == {"b": "3", "a": "1"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\na: 2\n", r"env.yml:2: the key 'a' is there twice, first in line 1"),
        ("a:\n\tb: 1\n", r"env.yml:2: a tab stands where YAML wants spaces"),
        ("a: 1\n---\nb: 2\n", r"env.yml:2: a second document"),
        ("a: &x [*x]\n", r"env.yml:1: an alias leads back to itself"),
        ("\na: !!python/object/apply:os.getcwd []\n", r"env.yml:2: the tag !!python/object/apply:os.getcwd"),
        ("a: !!python/name:os.system x\n", r"env.yml:1: the tag"),
        ("a: !secret x\n", r"env.yml:1: the tag '!secret'"),
        ("a: 1\nb: \x07\n", r"env.yml:2: it holds the character U\+0007"),
        ("a: 1\nb: 'open\n", r"env.yml:3: this is not YAML"),
        ("a: b: c\n", r"env.yml:1: this is not YAML"),
        ("? [a]\n: b\n", r"env.yml:1: a key is not text"),
        ("<<: 3\n", r"env.yml:1: << takes a mapping"),
        ("[" * 1000, r"nested too deeply"),
        ("x" * (yaml_text.FILE_LIMIT + 1), r"larger than"),
        (b"a: \xff\xff", r"env.yml:1: .*UTF-8"),
    ],
)
def test_what_is_refused_is_named_with_its_line(text: str | bytes, said: str) -> None:
    with pytest.raises(SpecificationError, match=said):
        yaml_text.parse(text, "env.yml")


def test_aliases_that_multiply_are_refused_before_they_are_followed_to_the_end() -> None:
    bomb = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    bomb += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    with pytest.raises(SpecificationError, match="more than 50,000 values"):
        yaml_text.parse("\n".join(bomb), "env.yml")


def test_a_misspelt_key_gets_the_nearest_known_one() -> None:
    assert "did you mean 'conda_file'?" in yaml_text.unknown_key("condaFile", ("conda_file", "image"), "it")
    assert "did you mean" not in yaml_text.unknown_key("zzz", ("conda_file", "image"), "it")


@given(st.text(max_size=200) | st.binary(max_size=200))
def test_nothing_leaves_the_error_tree(content: str | bytes) -> None:
    try:
        yaml_text.parse(content, "env.yml")
    except SpecificationError as error:
        assert str(error).startswith("env.yml")


words = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=20)


@given(st.dictionaries(words, words | st.lists(words, max_size=3), max_size=4))
def test_what_any_writer_quotes_comes_back_as_it_was(document: dict[str, object]) -> None:
    written = yaml.safe_dump(document, allow_unicode=True, default_style='"')
    found = yaml_text.parse(written, "env.yml")
    assert yaml_text.plain(found) == document
    assert all(isinstance(key, Text) for key in table(written))

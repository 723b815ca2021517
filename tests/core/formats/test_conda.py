"""Conda environment files: read as they are written, or refused with file, line and reason."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from prefect_environments.core.errors import DefinitionError, RequirementsError, SpecificationError
from prefect_environments.core.formats import conda
from prefect_environments.core.formats.conda import CondaSpecification

FILE = """\
# ours
name: ours
channels:
  - pytorch
  - https://channels.example.com/team
  - nodefaults
dependencies:
  - python=3.7.*
  - numpy   >=1.26,<2
  - pytorch::pytorch=2.0=py3.10_cuda11.8_0
  - pip:
    - pandas # frames
    - --extra-index-url https://packages.example.com/simple
  - libgomp[version='>=12', build=h*]
  - pip:
      - numpy<2 ; python_version < "3.9"
prefix: /home/ann/envs/ours
variables:
  LEVEL: 3.10
  SWITCH: yes
"""


def refused(text: str | bytes, folder: Path | None = None) -> str:
    with pytest.raises((SpecificationError, RequirementsError)) as caught:
        conda.parse(text, "env.yml", folder=folder)
    return str(caught.value)


def test_everything_is_read_as_it_is_written() -> None:
    """No version becomes a number, no truth value a boolean, no wildcard another version; pip sections are joined."""
    found = conda.parse(FILE, "env.yml")
    assert found == CondaSpecification(
        name="ours",
        channels=("pytorch", "https://channels.example.com/team", "nodefaults"),
        dependencies=(
            "python=3.7.*",
            "numpy >=1.26,<2",
            "pytorch::pytorch=2.0=py3.10_cuda11.8_0",
            "libgomp[version='>=12', build=h*]",
        ),
        pip=(
            "pandas",
            "--extra-index-url https://packages.example.com/simple",
            'numpy<2 ; python_version < "3.9"',
        ),
        prefix="/home/ann/envs/ours",
        variables={"LEVEL": "3.10", "SWITCH": "yes"},
    )
    assert found.warnings == ()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_encodings_and_line_ends_make_no_difference(encoding: str, ends: str, tmp_path: Path) -> None:
    path = tmp_path / "env.yml"
    path.write_bytes(FILE.replace("\n", ends).encode(encoding))
    assert conda.read(path) == conda.parse(FILE, "env.yml")


def test_what_is_written_reads_back_equal_and_is_text_to_every_yaml_reader() -> None:
    found = conda.parse(FILE, "env.yml")
    text = conda.write(found)
    assert conda.parse(text, "env.yml") == found
    plain = yaml.safe_load(text)
    assert plain["variables"] == {"LEVEL": "3.10", "SWITCH": "yes"}
    assert plain["dependencies"][-1] == {"pip": list(found.pip)}


def test_pip_lines_that_name_files_count_from_the_files_folder(tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text("pandas\n")
    (tmp_path / "app").mkdir()
    path = tmp_path / "env.yml"
    path.write_text("dependencies:\n- pip:\n  - -r more.txt\n  - -e ./app\n  - -f app\n")
    found = conda.read(path)
    app = (tmp_path / "app").as_uri()
    assert found.pip == (f"-r {tmp_path / 'more.txt'}", app, f"--find-links {app}")
    (tmp_path / "more.txt").unlink()
    with pytest.raises(RequirementsError, match=rf"{path}:3: .*no such file"):
        conda.read(path)
    late = conda.read(path, check_files=False)
    assert late.pip == found.pip
    assert f"{path}:3:" in late.warnings[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dependancies: []", r"env.yml:1: .*no key 'dependancies'; did you mean 'dependencies'\?"),
        ("name: x\nplatforms: [linux-64]", "env.yml:2: .*no key 'platforms'"),
        ("name: x\nname: y", "env.yml:2: the key 'name' is there twice"),
        ("dependencies:\n\t- numpy", "env.yml:2: a tab"),
        ("dependencies:\n- numpy\n- 3.10", "env.yml:3: '3.10' is no text, but a float"),
        ("dependencies:\n- yes", "env.yml:2: 'yes' is no text, but a bool"),
        ("dependencies:\n- python: 3.10", "env.yml:2: 'python' is a mapping; .*python=3.10"),
        ("dependencies:\n- numpy\n-", "env.yml:1: an item of dependencies is empty"),
        ("dependencies:\n- [numpy]", "env.yml:2: an item of dependencies is no text"),
        ("dependencies: numpy", "env.yml:1: dependencies is a list"),
        ("dependencies:\n- -r more.txt", "env.yml:2: .*written for pip"),
        ("dependencies:\n- git+https://git.example.com/x", "env.yml:2: .*written for pip"),
        ("dependencies:\n- numpy={{ version }}", "env.yml:2: .*placeholder"),
        ("dependencies:\n- numpyé", "env.yml:2: .*cannot be a conda package"),
        ("dependencies:\n- pip:\n  - a b", "env.yml:3: cannot read 'a b'"),
        ("dependencies:\n- pip: pandas", "env.yml:2: pip is a list"),
        ("dependencies:\n- pip:\n  - pandas: 1", "env.yml:3: an item of the pip section is no text"),
        ("dependencies:\n- pip: [-r more.txt]", "env.yml:2: .*names a file"),
        ("channels: [a b]", "env.yml:1: .*without white space"),
        ("variables: [A]", "env.yml:1: variables is a mapping"),
        ("variables:\n  A: 1\n  B:", "env.yml:3: the variable 'B' has no text"),
        ("name: [x]", "env.yml:1: name is text"),
        ("name: x\n---\nname: y", "env.yml:2: a second document"),
        ("name: !!python/name:os.system x", "env.yml:1: .*tag"),
        ("dependencies:\n- a: &a [*a]", "env.yml:2: "),
        ("- numpy", "env.yml:1: .*it is a list"),
        ("", "env.yml:1: .*it is empty"),
        ("@EXPLICIT\nhttps://x.example.com/a.conda", "explicit list"),
    ],
)
def test_what_cannot_be_read_is_refused_with_line_and_reason(text: str, said: str) -> None:
    import re

    assert re.search(said, refused(text)), refused(text)


@pytest.mark.parametrize(
    "text",
    [
        "channels: ['https://ann:planted-word@x.example.com/c']",
        "channels: ['https://x.example.com/t/planted-word/c']",
        "dependencies: ['https://ann:planted-word@x.example.com/c::numpy']",
        "dependencies:\n- pip:\n  - --extra-index-url https://ann:planted-word@x.example.com/s",
    ],
)
def test_credentials_are_refused_and_not_shown(text: str) -> None:
    said = refused(text)
    assert "env.yml:" in said
    assert "credentials" in said
    assert "planted-word" not in said


def test_an_empty_list_is_noted_as_it_may_be_indented_wrongly() -> None:
    found = conda.parse("channels:\ndependencies:\n- numpy\n- pip:\n- pandas\n", "env.yml")
    assert found.dependencies == ("numpy", "pandas")
    assert found.warnings[0].startswith("env.yml:4: pip is empty; is the list below it indented too little?")
    assert found.warnings[1] == "env.yml:1: channels is empty"


def test_aliases_that_multiply_are_refused_quickly() -> None:
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40))]
    assert "values" in refused("\n".join(lines))


def test_a_missing_file_a_folder_and_a_large_file_are_told(tmp_path: Path) -> None:
    (tmp_path / "large.yml").write_bytes(b"#" * (1 << 20))
    for name, said in {"none.yml": "No such file", "": "directory", "large.yml": "larger"}.items():
        with pytest.raises(SpecificationError, match=said):
            conda.read(tmp_path / name)


@given(st.one_of(st.text(), st.binary(), st.lists(st.sampled_from(list("- :[]{}&*!\n'\"#pip1.0a"))).map("".join)))
def test_nothing_crashes(content: str | bytes) -> None:
    try:
        conda.parse(content, "env.yml")
    except DefinitionError as error:
        assert "env.yml" in str(error)


SPECS = st.from_regex(r"[a-z][a-z0-9]{0,5}(=[0-9]\.[0-9]{1,2}(\.\*)?)?", fullmatch=True)
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=8)


@given(
    st.lists(SPECS.filter(lambda spec: spec not in ("y", "n", "yes", "no", "on", "off", "true", "false", "null"))),
    st.dictionaries(TEXT, TEXT),
    TEXT,
)
def test_written_specifications_read_back_equal(specs: list[str], variables: dict[str, str], name: str) -> None:
    found = CondaSpecification(name=name, dependencies=tuple(specs), pip=("x==1.0",), variables=variables)
    assert conda.parse(conda.write(found), "env.yml") == found

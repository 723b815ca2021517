"""Match specs are kept as they were written, or refused with what to do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_environments.core.errors import SpecificationError
from prefect_environments.core.lock import conda
from prefect_environments.core.lock.conda import specs

WRITTEN = [
    "numpy",
    "NumPy",
    "numpy=1.26",
    "numpy==1.26.4",
    "numpy 1.26.4",
    "numpy 1.26.4 py311_0",
    "numpy=1.26.*=py311*",
    "numpy=1.26.4=py311h64a7726_0",
    "python=3.7.*",
    "python=3.7.10=h12debd9_4",
    "python >=3.8,<3.12",
    "python=3.11.*,!=3.11.4",
    "pkg~=1.2",
    "pkg=1.*|2.*",
    "pkg==1!2.0",
    "pkg[version='>=1',build=py*]",
    "pkg[version='>=1', build_number='>=2']",
    "conda-forge::pkg",
    "conda-forge/linux-64::pkg=1.0",
    "nvidia/label/cuda-12.4.0::cuda",
    "https://conda.example.com/team::pkg>=1",
    "/srv/channel::pkg",
    "pkg[channel=conda-forge]",
    "_libgcc_mutex=0.1=main",
    "ca-certificates=2023.01.10=h06a4308_0",
    "__glibc>=2.17",
]

REFUSED = {
    "": "missing package name",
    "   ": "missing package name",
    "py*": "glob",
    "^py.*$": "regex",
    "pkg=": "version",
    "pkg=>1": "version",
    "a b c d": "build string",
    "pkg=1.0=*=x": "build string",
    "-r requirements.txt": "no name of a package",
    "--name": "no name of a package",
    "pkg # why": "comment",
    "pkg;python_version<'3'": "pip",
    "pkg[extra]": "pip",
    "pkg[extras=[a]]": "pip",
    "pkg[when='python >3']": "pip",
    "pkg @ https://example.com/pkg.whl": "pip",
    "pkg-1.0-py_0.tar.bz2": "names a file",
    "https://conda.example.com/team/linux-64/pkg-1.0-0.conda": "names a file",
    "/srv/channel/linux-64/pkg-1.0-0.conda": "names a file",
    "pkg[url=https://conda.example.com/team/linux-64/pkg-1.0-0.conda]": "names a file",
    "conda-forge:pkg": "two colons",
    "../channel::pkg": "absolute",
    "~/channel::pkg": "absolute",
    "local::pkg": "own builds",
    "defaults::pkg": "no single channel",
    "pkg\x00": "printed",
}


@pytest.mark.parametrize("text", WRITTEN)
def test_a_spec_stays_as_it_is_written(text: str) -> None:
    assert conda.normalise_spec(text) == text


def test_only_white_space_is_normalised() -> None:
    assert conda.normalise_spec("  python\t>=3.8,  <3.12\n") == "python >=3.8, <3.12"


@pytest.mark.parametrize(("text", "why"), REFUSED.items())
def test_what_is_no_spec_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(SpecificationError, match="conda") as refusal:
        conda.normalise_spec(text)
    assert why in str(refusal.value)


@pytest.mark.parametrize(
    "text",
    [
        "https://me:hunter2@conda.example.com/team::pkg",
        "https://hunter2@conda.example.com/team::pkg",
        "https://conda.example.com/t/hunter2/team::pkg",
        "pkg[channel=https://me:hunter2@conda.example.com/team]",
    ],
)
def test_a_password_or_token_in_a_spec_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(SpecificationError, match="credentials of its host") as refusal:
        conda.normalise_spec(text)
    assert "hunter2" not in str(refusal.value)


@given(st.text(max_size=40) | st.text("ap1.*=<>!,|~: []'\"/@#-_", max_size=25))
def test_any_text_is_kept_but_for_white_space_or_refused(text: str) -> None:
    try:
        written = conda.normalise_spec(text)
    except SpecificationError:
        return
    assert written == " ".join(text.split())
    assert conda.normalise_spec(written) == written


_VERSIONS = st.builds(".".join, st.lists(st.integers(0, 30).map(str), min_size=1, max_size=3))
_CLAUSES = st.builds("{}{}".format, st.sampled_from([">=", "<=", "<", ">", "==", "!=", "="]), _VERSIONS)


@given(
    st.from_regex(r"[a-z][a-z0-9_-]{0,8}", fullmatch=True),
    st.lists(_CLAUSES, max_size=3),
    st.sampled_from(["", "conda-forge", "nvidia/label/x", "https://conda.example.com/a/b", "/srv/channel"]),
)
def test_parts_of_a_spec_are_found_again(name: str, clauses: list[str], channel: str) -> None:
    text = f"{channel}::{name}" if channel else name
    text += f" {','.join(clauses)}" if clauses else ""
    spec = specs.read(text)
    assert (spec.name, spec.channel, spec.text) == (name, channel, text)
    assert "channel" not in spec.canonical()


@pytest.mark.parametrize(
    ("given_specs", "python", "pip"),
    [
        (["python=3.11"], "3.11.*", ()),
        (["python==3.11"], "==3.11", ()),
        (["python"], "*", ()),
        (["python", "python>=3.9", "python=3.9.*|3.10.*"], ">=3.9,(3.9.*|3.10.*)", ()),
        (["python=3.7.*", "pip"], "3.7.*", ("pip",)),
        (["python>=3.8,<3.12", "pip=23.1"], ">=3.8,<3.12", ("pip==23.1.*",)),
        (["pip==24.0"], "*", ("pip==24.0",)),
        (["pip 24.0"], "*", ("pip==24.0",)),
        (["pip>=22,!=23.1"], "*", ("pip!=23.1,>=22",)),
        ([], "*", ()),
    ],
)
def test_python_and_pip_alone_can_come_from_a_base_image(
    given_specs: list[str], python: str, pip: tuple[str, ...]
) -> None:
    assert conda.plain_python(given_specs) == conda.PlainPython(python, pip)


@pytest.mark.parametrize(
    "given_specs",
    [
        ["python=3.11", "numpy"],
        ["python=3.11.9=h955ad1f_0"],
        ["conda-forge::python=3.11"],
        ["python[channel=conda-forge]"],
        ["python[build_number='>=2']"],
        ["python[subdir=linux-64]"],
        ["python=3.11", "pip=22.*|23.*"],
        ["python=3.11", "pip=23.1=py311_0"],
    ],
)
def test_a_build_a_channel_or_another_package_is_for_conda(given_specs: list[str]) -> None:
    assert conda.plain_python(given_specs) is None


@pytest.mark.parametrize(
    ("spec", "version", "fits"),
    [
        ("3.11.*", "3.11.2", True),
        ("3.11.*", "3.12.0", False),
        ("3.1.*", "3.11.2", False),
        ("==3.11", "3.11.2", False),
        (">=3.8,<3.12", "3.11.2", True),
        (">=3.9,(3.9.*|3.10.*)", "3.11.2", False),
        (">=3.12", "3.12.0rc1", False),
        ("3.11.*", "3.11.2+", True),
        ("*", "3.14.0", True),
        ("", "3.14.0", True),
    ],
)
def test_versions_of_python_are_compared_by_the_rules_of_conda(spec: str, version: str, fits: bool) -> None:
    assert conda.satisfies_python(spec, version) is fits


def test_a_python_that_is_no_version_is_refused() -> None:
    with pytest.raises(SpecificationError, match="cannot compare Python"):
        conda.satisfies_python("3.11.*", "not-a-version!")
    with pytest.raises(SpecificationError, match=r"write such as python=3\.12"):
        conda.satisfies_python("=>3", "3.11.2")


def test_whether_python_itself_is_asked_for() -> None:
    assert conda.names_python(["numpy", "conda-forge::Python=3.11"])
    assert not conda.names_python(["pythonnet", "numpy"])

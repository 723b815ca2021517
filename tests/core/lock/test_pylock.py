"""Reading the resolver's document: every kind of package, and nothing but our errors for the rest."""

from pathlib import Path

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from prefect_environments.core.errors import ResolveError
from prefect_environments.core.lock import pylock

HERE = Path("/srv/project")
SHA = "ab" * 32
HEAD = 'lock-version = "1.0"\ncreated-by = "x"\nfuture-key = 1\n'


def one(table: str) -> pylock.ResolvedPackage:
    (package,) = pylock.read(f"{HEAD}[[packages]]\nname = 'Demo.Pkg'\n{table}", HERE)
    return package


def test_wheels_have_names_addresses_hashes_and_sizes_and_unknown_keys_are_ignored() -> None:
    url = "https://example.com/demo_pkg-1%2Bcpu-py3-none-any.whl"
    package = one(f"version='1+cpu'\nnew=[1]\nwheels=[{{url='{url}', size=3, hashes={{sha256='{SHA}', md5='x'}}}}]")
    assert package.name == "demo-pkg"
    assert package.wheels == (pylock.WheelFile("demo_pkg-1+cpu-py3-none-any.whl", url, SHA, 3),)
    assert package.source is None


def test_a_wheel_by_direct_address_is_a_wheel_and_other_archives_are_sources() -> None:
    wheel = one(f"archive={{path='w/demo_pkg-1-py3-none-any.whl', hashes={{sha256='{SHA}'}}}}")
    assert wheel.wheels[0].url == "file:///srv/project/w/demo_pkg-1-py3-none-any.whl"
    source = one(f"archive={{url='https://example.com/d.zip', subdirectory='a', hashes={{sha256='{SHA}'}}}}").source
    assert source == pylock.SourcePackage("demo-pkg", "https://example.com/d.zip", None, SHA, subdirectory="a")


def test_git_commits_and_directories_are_sources() -> None:
    git = one("vcs={type='git', url='https://example.com/r.git', commit-id='c0', requested-revision='main'}").source
    assert git == pylock.SourcePackage("demo-pkg", "https://example.com/r.git", commit="c0")
    folder = one("directory={path='../demo', editable=false}").source
    assert folder is not None and folder.is_directory and folder.url == "file:///srv/demo"


@pytest.mark.parametrize(
    "table",
    [
        "wheels=[{url='https://example.com/x-1-py3-none-any.whl', hashes={sha256='zz'}}]",
        "wheels=[{hashes={}}]",
        "wheels=3",
        "wheels=['x']",
        "marker='no marker'",
        "version=1",
        "sdist={url='https://example.com/x-1.tar.gz', hashes={}}",
        "vcs={type='hg', url='https://example.com/x', commit-id='1'}",
        "vcs={type='git', url='https://example.com/x'}",
        "directory={}",
        "archive={url='https://[bad/x.whl'}",
    ],
)
def test_a_malformed_package_is_a_resolve_error(table: str) -> None:
    with pytest.raises(ResolveError, match="cannot be read"):
        one(table)


json = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text("a/:.[]%", max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "name",
                    "version",
                    "marker",
                    "wheels",
                    "sdist",
                    "archive",
                    "vcs",
                    "directory",
                    "url",
                    "path",
                    "hashes",
                    "sha256",
                    "commit-id",
                    "type",
                    "size",
                ]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=20,
)


def without_none(value: object) -> object:
    if isinstance(value, dict):
        return {key: without_none(item) for key, item in value.items() if item is not None}
    return [without_none(item) for item in value if item is not None] if isinstance(value, list) else value


@given(json)
def test_any_document_is_read_or_refused_by_our_error(packages: object) -> None:
    text = tomli_w.dumps({"packages": without_none(packages)} if packages is not None else {})
    try:
        assert isinstance(pylock.read(text, HERE), tuple)
    except ResolveError as error:
        assert "cannot be read" in str(error)


@given(st.text(max_size=30))
def test_any_text_is_read_or_refused_by_our_error(text: str) -> None:
    try:
        assert pylock.read(text, HERE) == ()
    except ResolveError as error:
        assert "cannot be read" in str(error)

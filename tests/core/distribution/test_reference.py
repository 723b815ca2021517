"""References to images: what is read, what is refused, and that the canonical form is stable."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_environments.core.distribution.reference import Reference, api_host, check_reference, is_loopback
from prefect_environments.core.errors import DefinitionError

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "host", "path", "tag", "digest"),
    [
        ("registry.example.com:5000/a/b:t1@" + DIGEST, "registry.example.com:5000", "a/b", "t1", DIGEST),
        ("registry.example.com/a", "registry.example.com", "a", None, None),
        ("REGISTRY.example.com/a:T", "registry.example.com", "a", "T", None),
        ("localhost/a:b", "localhost", "a", "b", None),
        ("localhost:5000/a", "localhost:5000", "a", None, None),
        ("[::1]:5000/a/b@" + DIGEST, "[::1]:5000", "a/b", None, DIGEST),
        ("127.0.0.1:5000/a__b/c-d.e", "127.0.0.1:5000", "a__b/c-d.e", None, None),
        ("python:3.12-slim", "docker.io", "library/python", "3.12-slim", None),
        ("team/image", "docker.io", "team/image", None, None),
        ("docker.io/python", "docker.io", "library/python", None, None),
        ("index.docker.io/team/image:1", "docker.io", "team/image", "1", None),
    ],
)
def test_a_reference_is_read_into_its_parts(
    text: str, host: str, path: str, tag: str | None, digest: str | None
) -> None:
    assert Reference.parse(text) == Reference(host, path, tag, digest)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "empty"),
        ("/a/b", "host"),
        ("https://registry.example.com/a", "scheme"),
        ("oci:folder", "image-layout"),
        ("registry.example.com/A", "lower case"),
        ("registry.example.com/", "path"),
        ("registry.example.com/a//b", "path"),
        ("registry.example.com/a/", "path"),
        ("registry.example.com/../a", "path"),
        ("registry.example.com/a:", "tag"),
        ("registry.example.com/a:-x", "tag"),
        ("registry.example.com/a:" + "x" * 129, "tag"),
        ("registry.example.com/a@sha256:12", "digest"),
        ("registry.example.com/a@", "digest"),
        ("registry.example.com:0/a", "port"),
        ("registry.example.com:70000/a", "port"),
        ("user@registry.example.com/a", "digest"),
        ("registry..example.com/a", "host"),
        ("[::g]/a", "IPv6"),
        ("registry.example.com/" + "a" * 256, "255"),
        ("a b", "path"),
        ("a\n", "path"),
        ("a:b\n", "tag"),
    ],
)
def test_a_wrong_reference_is_refused_by_naming_what_is_wrong(text: str, word: str) -> None:
    with pytest.raises(DefinitionError, match=word):
        Reference.parse(text)


@given(st.text(max_size=80) | st.text(alphabet="aA0.:/@-_[]sha256", max_size=60))
def test_any_text_is_read_to_a_stable_form_or_refused_within_the_error_tree(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except DefinitionError:
        return
    assert Reference.parse(str(reference)) == reference


_COMPONENT = st.from_regex(r"\A[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*\Z").filter(lambda text: len(text) < 40)


@given(
    st.sampled_from(["registry.example.com", "127.0.0.1:5000", "docker.io", "[::1]:80"]),
    st.lists(_COMPONENT, min_size=2, max_size=4),
    st.none() | st.from_regex(r"\A[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}\Z"),
    st.none() | st.just(DIGEST),
)
def test_every_legal_reference_survives_writing_and_reading(
    host: str, components: list[str], tag: str | None, digest: str | None
) -> None:
    reference = Reference(host, "/".join(components), tag, digest)
    assert Reference.parse(str(reference)) == reference


def test_a_manifest_is_asked_for_by_digest_then_tag_then_latest() -> None:
    assert Reference.parse(f"a:b@{DIGEST}").identifier == DIGEST
    assert Reference.parse("a:b").identifier == "b"
    assert Reference.parse("a").identifier == "latest"
    with pytest.raises(DefinitionError):
        check_reference("sha256:xyz")


def test_only_this_machines_own_names_are_loopback() -> None:
    assert all(map(is_loopback, ["localhost", "localhost:5000", "127.0.0.1:1", "127.9.9.9", "[::1]:5000"]))
    assert not any(map(is_loopback, ["example.com", "localhost.example.com", "10.0.0.1:5000", "[::2]", "128.0.0.1"]))


def test_docker_hub_answers_its_api_at_another_host() -> None:
    assert api_host("docker.io") != "docker.io"
    assert api_host("registry.example.com:5000") == "registry.example.com:5000"

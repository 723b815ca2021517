"""Names: what is allowed, and that derived names are legal and distinct."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_environments.core import names
from prefect_environments.core.errors import NameNotAllowed

allowed = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", fullmatch=True)
workspaces = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}", fullmatch=True)
versions = st.integers(1, 10**9)


@pytest.mark.parametrize("name", ["a", "9", "train", "My.Env_v2-x", "a" * 128, "my-azureml", "amicrosoft"])
def test_a_legal_name_comes_back_unchanged(name: str) -> None:
    assert names.check_name(name) == name


@pytest.mark.parametrize(
    "name", [None, "", " ", "a b", "a/b", "-a", ".a", "_a", "a\n", "ä", "a" * 129, 7, b"a", "a:b", "../a"]
)
def test_an_illegal_name_is_refused_with_what_is_allowed(name: object) -> None:
    with pytest.raises(NameNotAllowed, match=r"letters .* digits, '.', '_' and '-'.*got"):
        names.check_name(name)


def test_the_refusal_shows_what_came_but_not_pages_of_it() -> None:
    with pytest.raises(NameNotAllowed, match="got 'a b'"):
        names.check_name("a b")
    with pytest.raises(NameNotAllowed) as caught:
        names.check_name("x" * 100_000)
    assert "100000 characters" in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", ["Microsoft", "microsoft-x", "AzureML-pytorch", "AZUREML", "azureml.x"])
def test_reserved_names_are_refused_whatever_their_case(name: str) -> None:
    with pytest.raises(NameNotAllowed, match="reserved"):
        names.check_name(name)


def test_workspaces_have_the_same_grammar_but_are_shorter_and_nothing_is_reserved() -> None:
    assert names.check_workspace_name("AzureML-team") == "AzureML-team"
    assert names.check_workspace_name("w" * 60) == "w" * 60
    for refused in ("w" * 61, "", "a b", None):
        with pytest.raises(NameNotAllowed, match="a workspace name is 1 to 60"):
            names.check_workspace_name(refused)


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("Train", "train"),
        ("a._-b", "a-b"),
        ("a.b", "a-b"),
        ("a_b", "a-b"),
        ("a-", "a"),
        ("a--b..", "a-b"),
        ("V1.0", "v1-0"),
    ],
)
def test_a_slug_folds_case_and_separators(name: str, slug: str) -> None:
    assert names.slug(name) == slug


@given(allowed)
def test_a_slug_is_a_legal_repository_component_and_its_own_slug(name: str) -> None:
    slug = names.slug(name)
    assert re.fullmatch(r"[a-z0-9]+(?:-[a-z0-9]+)*", slug)
    assert names.slug(slug) == slug


@given(workspaces, allowed, versions)
def test_a_document_name_is_legal_for_prefect(workspace: str, name: str, version: int) -> None:
    document = names.document_name(workspace, name, version)
    assert re.fullmatch(r"[a-z0-9-]+", document)
    assert len(document) <= names.DOCUMENT_NAME_LIMIT
    assert document.startswith(names.workspace_prefix(workspace))
    assert document == f"{names.document_prefix(workspace, name)}v{version}"


# Few letters, so that different names with equal pieces are drawn often.
few = st.text("aB1v.-", min_size=1, max_size=6).filter(lambda text: text[0].isalnum())


identities = st.tuples(few, few, st.integers(1, 12))


@given(identities, identities)
def test_document_names_are_equal_only_for_equal_slugs_and_numbers(
    one: tuple[str, str, int], other: tuple[str, str, int]
) -> None:
    slugs = [(names.slug(workspace), names.slug(name), version) for workspace, name, version in (one, other)]
    assert (names.document_name(*one) == names.document_name(*other)) == (slugs[0] == slugs[1])


def test_long_names_that_differ_at_their_end_only_stay_apart_and_from_short_ones() -> None:
    workspace = "w" * 60
    long = [f"{'n' * 120}{end}" for end in ("a", "b", "-c")]
    documents = {names.document_name(workspace, name, 1) for name in [*long, "n" * 20, "n" * 19]}
    assert len(documents) == 5
    assert sum("---" in document for document in documents) == 3


def test_a_cut_at_a_dash_leaves_exactly_three_dashes_before_the_hash() -> None:
    for padding in range(40, 60):
        document = names.document_name("w" * padding, "-".join(["ab"] * 42), 1)
        assert re.search(r"[a-z0-9]---[0-9a-f]{16}--v1$", document)


def test_versions_are_numbered_from_one() -> None:
    assert names.document_name("Team", "Train", 1) == "team--train--v1"
    with pytest.raises(NameNotAllowed, match="numbered from 1"):
        names.document_name("team", "train", 0)


@pytest.mark.parametrize(
    ("text", "number"),
    [("7", 7), ("007", 7), ("9" * 17, 10**17 - 1), *((no, None) for no in ("9" * 5000, "0", "", "-1", "\u0667"))],
)
def test_the_number_of_a_version_is_what_is_written_as_one(text: str, number: int | None) -> None:
    assert names.version_number(text) == number

"""The hashes: what changes them, what does not, and that documentation and code say the same."""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_environments.core import canonical, hashes, steps, trees
from prefect_environments.core.build import plan, recipe
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.environment import Environment
from prefect_environments.core.errors import DefinitionError, ImageError
from prefect_environments.core.lock.model import Lock, LockedBase, LockedPackage
from prefect_environments.core.lock.target import Platform, Target
from tests.support.wheels import make_wheel

PAGE = (Path(__file__).parents[2] / "docs" / "hashes.md").read_text("utf-8")
VECTOR = re.compile(r"### Vector: ([\w ]+)\n.*?```json\n(.*?)\n```\n\n```text\n(.*?)\n```\n\n`(sha256:\w+)`", re.DOTALL)
VECTORS = VECTOR.findall(PAGE)

COUNTED: dict[str, Any] = {
    "base_image": "python:3.13",
    "requirements": ["numpy"],
    "constraints": ["numpy<3"],
    "index_url": "https://packages.example.com/simple",
    "extra_index_urls": ["https://packages.example.com/simple"],
    "find_links": ["https://packages.example.com/simple"],
    "no_index": True,
    "pre": True,
    "only_binary": ["numpy"],
    "allow_source_builds": True,
    "platform": "linux/arm64",
    "conda_channels": ["numpy"],
    "conda_dependencies": ["numpy"],
    "dockerfile": "FROM python:3.13",
    "build_context": "https://git.example.com/a.git#" + "1" * 40,
    "user_managed": True,
    "dockerfile_path": "numpy",
    "build_arguments": {"numpy": "1"},
    "build_target": "numpy",
    "build_secrets": {"numpy": "secret:a"},
    "mirror": True,
    "pylock": "numpy",
    "requires_python": "numpy",
    "extends": "numpy:1",
    "compile_bytecode": True,
}
RECORDED: dict[str, Any] = {
    "description": "numpy",
    "environment_variables": {"numpy": "1"},
    "tags": {"numpy": "1"},
    "interpreter_path": "numpy",
}
NEITHER: dict[str, Any] = {
    "name": "other",
    "base_image_username": "ann",
    "base_image_password": "secret:registry",
    "base_image_registry": "registry.example.com",
    "allow_literal_secrets": True,
    "require_hashes": True,
}
IMAGE = "sha256:" + "1" * 64


def define(**fields: Any) -> EnvironmentDefinition:
    return EnvironmentDefinition(**{"name": "train", **fields})


def changed(field: str, value: Any) -> EnvironmentDefinition:
    """A definition with one field changed, unchecked, because some are allowed in pairs only."""
    return define().model_copy(update={field: tuple(value) if isinstance(value, list) else value})


def asked(*lines: str) -> str:
    return hashes.definition_hash(define(requirements=list(lines)))


def lock_of(packages: list[list[str]], **fields: Any) -> Lock:
    target = Target("3.12.7", "/usr/local/bin/python3.12", "glibc", "2.36")
    base = LockedBase("python:3.12", "sha256:" + "a" * 64)
    wheels = tuple(LockedPackage.of_file(filename, sha256, None) for filename, sha256 in packages)
    return replace(Lock(base, target, wheels), **fields)


LOCK = lock_of([["leaf-1.0-py3-none-any.whl", "c" * 64], ["pip-25.0-py3-none-any.whl", "b" * 64]])


# ---- the page


def computed(given: dict[str, Any], folder: Path) -> str:
    """What the code makes of a vector's input."""
    if "lock" in given:
        base, target = LockedBase(**given["lock"]["base"]), Target.from_json(given["lock"]["target"])
        return hashes.image_hash(lock_of(given["lock"]["packages"], base=base, target=target))
    if "folder" in given:
        write(folder, given["folder"])
        return trees.digest(folder)
    if "python" in given:
        target = replace(LOCK.target, python=given["python"])
        lock = lock_of(given["packages"], target=target)
        return f"sha256:{plan.layer_key(lock.packages, lock)}"
    definition = EnvironmentDefinition(**given.pop("definition"))
    if "image" in given:
        return hashes.record_hash(given["image"], definition)
    return hashes.definition_hash(definition, **given)


def write(folder: Path, entries: list[list[str]]) -> Path:
    for name, kind, content in entries:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "link":
            path.symlink_to(content)
        else:
            path.write_text(content)
            path.chmod(0o755 if kind == "executable" else 0o644)
    return folder


def test_the_page_has_a_vector_of_every_hash() -> None:
    names = [name for name, *_ in VECTORS]
    assert names == ["definition 1", "definition 2", "folder", "image", "record", "layer"]
    assert PAGE.count("### Vector") == len(names)


@pytest.mark.parametrize(("given_", "text", "digest"), [v[1:] for v in VECTORS], ids=[v[0] for v in VECTORS])
def test_a_vector_of_the_page_is_what_the_code_computes(given_: str, text: str, digest: str, tmp_path: Path) -> None:
    """And what anybody computes from the canonical text with sha256 alone."""
    assert f"sha256:{hashlib.sha256(text.encode()).hexdigest()}" == digest
    assert computed(json.loads(given_), tmp_path) == digest


@pytest.mark.parametrize("section", ["Definition hash", "Image hash", "Record hash"])
def test_the_tables_of_the_page_name_exactly_the_keys_of_the_vectors(section: str) -> None:
    part = PAGE.partition(f"## {section}")[2]
    keys = re.findall(r"^\| `([a-z-]+)` \|", part.partition("\n#")[0], re.MULTILINE)
    text = VECTOR.search(part.replace("### Vector: folder", ""))
    assert text is not None
    assert sorted(keys) == sorted(json.loads(text[3]))


def test_every_field_of_a_definition_was_thought_of() -> None:
    """A new field must be put into one of the lists above, and onto the page."""
    assert COUNTED.keys() | RECORDED.keys() | NEITHER.keys() == EnvironmentDefinition.model_fields.keys()
    for name in EnvironmentDefinition.model_fields:
        assert f"`{name}`" in PAGE


# ---- definition hash


def test_each_field_that_counts_gives_another_definition_hash_and_no_two_the_same() -> None:
    found = {hashes.definition_hash(define())}
    found |= {hashes.definition_hash(changed(name, value)) for name, value in COUNTED.items()}
    assert len(found) == len(COUNTED) + 1


def test_no_other_field_changes_the_definition_hash() -> None:
    found = {hashes.definition_hash(changed(name, value)) for name, value in {**RECORDED, **NEITHER}.items()}
    assert found == {hashes.definition_hash(define())}


def test_the_workspaces_base_image_and_index_count_where_the_definition_names_none() -> None:
    bare = define()
    own = define(base_image="python:3.12", index_url="https://packages.example.com/simple")
    defaults = {"default_base_image": "python:3.12", "default_index_url": "https://packages.example.com/simple"}
    assert hashes.definition_hash(bare, **defaults) == hashes.definition_hash(own)
    assert hashes.definition_hash(own, **defaults) == hashes.definition_hash(own)
    assert hashes.definition_hash(bare) != hashes.definition_hash(bare, **defaults)


@pytest.mark.parametrize("base", [{"dockerfile": "FROM python:3.12"}, {"extends": "iris:7"}])
def test_the_workspaces_base_image_does_not_count_where_the_base_is_another(base: dict[str, str]) -> None:
    wanted = EnvironmentDefinition(name="a", **base)
    assert hashes.definition_hash(wanted, default_base_image="python:3.12") == hashes.definition_hash(wanted)


def test_a_folder_in_a_given_lock_counts_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("x = 1\n")
    lock = f'lock-version = "1.0"\n[[packages]]\nname = "own"\ndirectory = {{path = "{tmp_path}"}}\n'
    wanted = EnvironmentDefinition(name="a", pylock=lock)
    before = hashes.definition_hash(wanted)
    assert hashes.definition_hash(wanted) == before
    (tmp_path / "code.py").write_text("x = 2\n")
    assert hashes.definition_hash(wanted) != before
    (tmp_path / "code.py").unlink()
    tmp_path.rmdir()
    with pytest.raises(DefinitionError, match=r"the lock's folder .* cannot be read"):
        hashes.definition_hash(wanted)


def test_a_workspace_counts_by_its_defaults_and_not_by_its_name(tmp_path: Path) -> None:
    from prefect_environments.blocks import PackageIndexCredentials, Workspace

    one, two = Workspace.local(tmp_path / "a", name="one"), Workspace.local(tmp_path / "b", name="two")
    assert steps.definition_hash(one, define()) == steps.definition_hash(two, define())
    two.index = PackageIndexCredentials(url="https://packages.example.com/simple")
    three = two.model_copy(update={"default_base_image": "python:3.12"})
    assert len({steps.definition_hash(workspace, define()) for workspace in (one, two, three)}) == 3


names = st.from_regex(r"[a-z][a-z0-9]{0,8}(-[a-z0-9]{1,4}){0,2}", fullmatch=True)
lines = st.lists(
    st.tuples(names, st.sampled_from(["", "==1.0", ">=1,<3", "~=2.1"])), max_size=6, unique_by=lambda line: line[0]
)


@given(lines, st.data())
def test_order_case_spelling_comments_and_line_ends_do_not_count(
    pairs: list[tuple[str, str]], data: st.DataObject
) -> None:
    written = []
    for name, specifier in data.draw(st.permutations(pairs)):
        spelt = "".join(data.draw(st.sampled_from([c, c.upper()])) for c in name)
        spelt = re.sub("-", lambda _: data.draw(st.sampled_from("-_.")), spelt)
        written.append(f"  {spelt} {specifier.replace(',', ' , ')}{data.draw(st.sampled_from(['', '  # why', ' ']))}")
        written += data.draw(st.lists(st.sampled_from(["", "# a comment", "   "]), max_size=2))
    end = data.draw(st.sampled_from(["\n", "\r\n", "\r"]))
    text = data.draw(st.sampled_from(["", "\ufeff"])) + end.join(written)
    assert hashes.definition_hash(define(requirements=text)) == asked(*(f"{n}{s}" for n, s in pairs))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encoding_and_spread_over_nested_files_do_not_count_but_a_nested_files_content_does(
    encoding: str, tmp_path: Path
) -> None:
    def of_file(nested: str) -> str:
        (tmp_path / "nested.txt").write_bytes(nested.encode(encoding))
        (tmp_path / "all.txt").write_bytes("pandas\r\n-r nested.txt\r\n".encode(encoding))
        return hashes.definition_hash(Environment.from_pip_requirements("train", tmp_path / "all.txt").definition())

    assert of_file("NumPy >= 2 # größer\n") == asked("numpy>=2", "pandas")
    assert of_file("numpy>=2.1\n") == asked("numpy>=2.1", "pandas")
    assert asked("numpy>=2", "pandas") != asked("numpy>=2.1", "pandas")
    (tmp_path / "limits.txt").write_text("numpy<3")
    limited = of_file("-c limits.txt\n")
    assert limited == hashes.definition_hash(define(requirements=["pandas"], constraints=["numpy<3"]))
    assert limited not in (asked("pandas"), asked("pandas", "numpy<3"))


@given(lines, lines)
def test_different_requirements_have_different_hashes(one: list[tuple[str, str]], other: list[tuple[str, str]]) -> None:
    same = sorted(one) == sorted(other)
    assert (asked(*(f"{n}{s}" for n, s in one)) == asked(*(f"{n}{s}" for n, s in other))) == same


def test_the_order_of_indexes_counts_because_the_first_that_has_a_package_decides() -> None:
    urls = ["https://a.example.com/", "https://b.example.com/"]
    one, other = (hashes.definition_hash(define(extra_index_urls=order)) for order in (urls, urls[::-1]))
    assert one != other


def test_a_local_wheel_counts_by_its_name_and_content_and_not_by_its_place(tmp_path: Path) -> None:
    one, two = (make_wheel(tmp_path / place, "leaf", "1.0") for place in ("one", "two"))
    first = asked(one.as_uri())
    assert asked(two.as_uri()) == first
    make_wheel(tmp_path / "two", "leaf", "1.0", {"leaf.py": b"other"})
    renamed = two.with_name("leaf-1.0-1-py3-none-any.whl")
    renamed.write_bytes(one.read_bytes())
    assert len({first, asked(two.as_uri()), asked(renamed.as_uri())}) == 3


def test_a_local_folder_counts_by_content_fragment_extras_and_marker(tmp_path: Path) -> None:
    """Not by its place and name, nor by what version control, caches and clocks leave in it."""
    source = [["pyproject.toml", "file", "[project]"], ["a b/run.sh", "executable", ""], ["a b/link", "link", "run.sh"]]
    one, two = write(tmp_path / "a b", source), write(tmp_path / "other", source)
    write(two, [[".git/HEAD", "file", "x"], ["a b/__pycache__/x.pyc", "file", "x"]])
    url = one.as_uri()
    assert "%20" in url
    assert asked(url) == asked(two.as_uri())
    spelt = [url, f"{url}#subdirectory=a", f"{url}#subdirectory=b", f"{url}[x]", f"lib @ {url}", f"lib[x] @ {url}"]
    spelt += [f"{url} ; python_version < '3.13'", f"lib @ {url} ; python_version < '3.13'"]
    found = {asked(line) for line in spelt}
    assert len(found) == len(spelt)
    changes = [["pyproject.toml", "file", "[other]"], ["a b/run.sh", "file", ""]]
    changes += [["more", "link", "run.sh"], ["a b/folder", "link", ".."]]
    for change in changes:
        write(two, [change])
        found.add(asked(two.as_uri()))
    assert len(found) == len(spelt) + len(changes)


def test_a_local_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError, match=r"none-1\.0-py3-none-any\.whl, which cannot be read \(No such file"):
        asked((tmp_path / "none-1.0-py3-none-any.whl").as_uri())


def test_a_local_repository_of_git_is_not_looked_into(tmp_path: Path) -> None:
    """Its commit is pinned by resolving; the address counts as any other."""
    assert asked(f"lib @ git+{(tmp_path / 'none').as_uri()}@v1") != asked(
        f"lib @ git+{(tmp_path / 'none').as_uri()}@v2"
    )


# ---- image hash


def test_mirrors_sizes_order_and_what_was_asked_do_not_change_the_image_hash() -> None:
    packages = tuple(replace(p, url="https://mirror.example.com/x.whl", size=7) for p in reversed(LOCK.packages))
    again = Lock(LOCK.base, LOCK.target, packages, ("leaf>=1",))
    assert hashes.image_hash(again) == hashes.image_hash(LOCK)
    assert hashes.image_hash(Lock.from_pylock(again.to_pylock())) == hashes.image_hash(LOCK)


def test_every_part_of_a_lock_that_decides_bytes_changes_the_image_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    leaf, pip = LOCK.packages
    others = [
        replace(LOCK, base=LockedBase("python:3.13", LOCK.base.digest)),
        replace(LOCK, base=LockedBase(LOCK.base.name, "sha256:" + "d" * 64)),
        replace(LOCK, target=replace(LOCK.target, platform=Platform("arm64"))),
        replace(LOCK, target=replace(LOCK.target, python="3.12.8")),
        replace(LOCK, target=replace(LOCK.target, interpreter="/usr/bin/python3.12")),
        replace(LOCK, packages=(leaf,)),
        replace(LOCK, packages=(replace(leaf, filename="leaf-1.0-1-py3-none-any.whl"), pip)),
        replace(LOCK, packages=(replace(leaf, version="1.0.0"), pip)),
        replace(LOCK, packages=(replace(leaf, sha256="d" * 64), pip)),
    ]
    found = {hashes.image_hash(lock) for lock in [LOCK, *others]}
    assert len(found) == len(others) + 1
    monkeypatch.setattr(recipe, "PREFIX", "/opt/other")
    found.add(hashes.image_hash(LOCK))
    assert len(found) == len(others) + 2


def test_a_new_recipe_is_a_new_image_and_a_new_question(monkeypatch: pytest.MonkeyPatch) -> None:
    before = hashes.image_hash(LOCK), hashes.definition_hash(define()), plan.layer_key(LOCK.packages, LOCK)
    monkeypatch.setattr(recipe, "VERSION", recipe.VERSION + 1)
    after = hashes.image_hash(LOCK), hashes.definition_hash(define()), plan.layer_key(LOCK.packages, LOCK)
    assert not set(before) & set(after)


# ---- record hash


def test_a_record_is_its_image_and_what_is_set_when_a_job_runs() -> None:
    found = {hashes.record_hash(IMAGE, changed(name, value)) for name, value in RECORDED.items()}
    found |= {hashes.record_hash(IMAGE, define()), hashes.record_hash("sha256:" + "2" * 64, define())}
    assert len(found) == len(RECORDED) + 2


def test_what_decides_the_image_is_in_the_record_by_the_image_alone() -> None:
    found = {hashes.record_hash(IMAGE, changed(name, value)) for name, value in {**COUNTED, **NEITHER}.items()}
    assert found == {hashes.record_hash(IMAGE, define())}


def test_a_record_needs_a_digest() -> None:
    with pytest.raises(ImageError, match="not a digest"):
        hashes.record_hash("latest", define())


# ---- nothing runs into its neighbour

texts = st.text(alphabet='ab",[]{}:\\\n\x00é', max_size=5)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-20, 20) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


def told_apart(value: Any) -> Any:
    """`value` with kinds that Python takes for equal told apart: `True` and `1`."""
    if isinstance(value, dict):
        return {key: told_apart(inner) for key, inner in value.items()}
    return [told_apart(inner) for inner in value] if isinstance(value, list) else (type(value).__name__, value)


@given(values, values)
def test_canonical_json_is_equal_for_equal_values_only(one: Any, other: Any) -> None:
    assert (canonical.dumps(one) == canonical.dumps(other)) == (told_apart(one) == told_apart(other))


@given(values)
def test_canonical_json_is_json_in_ascii_whatever_the_order_of_keys(value: Any) -> None:
    text = canonical.dumps(value)
    assert text.isascii()
    assert json.loads(text) == value
    if isinstance(value, dict):
        assert canonical.dumps(dict(reversed(value.items()))) == text


@given(st.text("ab", min_size=2, max_size=8), st.integers(0, 8), st.integers(0, 8))
def test_values_that_run_into_each_other_are_different(text: str, cut: int, other: int) -> None:
    """The same letters, cut at different places into neighbouring fields, list items, names and values."""
    one, two = ((text[:at], text[at:]) for at in (min(cut, len(text)), min(other, len(text))))
    builds: list[Callable[[str, str], str]] = [
        lambda a, b: hashes.record_hash(IMAGE, define(description=a, tags={"a": b})),
        lambda a, b: hashes.record_hash(IMAGE, define(tags={a: b})),
        lambda a, b: hashes.definition_hash(define().model_copy(update={"base_image": a, "dockerfile": b})),
        lambda a, b: hashes.definition_hash(changed("conda_channels", [a, b])),
        lambda a, b: hashes.image_hash(replace(LOCK, target=replace(LOCK.target, python=a, interpreter=b))),
    ]
    for build in builds:
        assert (build(*one) == build(*two)) == (one == two)


def test_an_empty_item_is_not_no_item() -> None:
    found = [hashes.definition_hash(changed("conda_channels", list(channels))) for channels in ((), ("",), ("", ""))]
    assert len(set(found)) == 3

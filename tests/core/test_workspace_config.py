"""Which workspace is meant: an argument, a variable, Azure ML's config.json, the default."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_environments.core.errors import DefinitionError, SpecificationError
from prefect_environments.core.workspace_config import VARIABLE, Choice, block_name, choose


def config(path: Path, name: Any = "My_Team", **more: Any) -> Path:
    """A file as Azure ML's studio offers it for download."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"subscription_id": "s", "resource_group": "g", "workspace_name": name, **more}))
    return path


def found(folder: Path, path: str | Path | None = None, **environ: str) -> Choice:
    return choose(path, environ=environ, folder=folder)


def test_the_order_is_argument_variable_config_default(tmp_path: Path) -> None:
    assert found(tmp_path).block == "default"
    config(tmp_path / "config.json")
    assert found(tmp_path).block == "my-team"
    assert found(tmp_path, **{VARIABLE: "other"}).block == "other"
    assert found(tmp_path, "mine", **{VARIABLE: "other"}).block == "mine"


def test_a_config_is_searched_upwards_and_dot_azureml_wins_wherever_it_is(tmp_path: Path) -> None:
    """As Azure ML does: first every .azureml/config.json, then every config.json."""
    deep = tmp_path / "a" / "b" / "c"
    deep.mkdir(parents=True)
    config(tmp_path / "a" / "config.json", "plain")
    assert found(deep).block == "plain"
    config(tmp_path / ".azureml" / "config.json", "hidden")
    assert found(deep).block == "hidden"
    assert str(tmp_path / ".azureml" / "config.json") in found(deep).said_by


def test_a_path_is_a_file_or_a_folder_to_search_from(tmp_path: Path) -> None:
    file = config(tmp_path / "elsewhere" / "ws.json", "By File")
    config(tmp_path / "elsewhere" / ".azureml" / "config.json", "By.Folder")
    assert found(tmp_path, file).block == "by-file"
    assert found(tmp_path, tmp_path / "elsewhere").block == "by-folder"
    assert found(tmp_path, **{VARIABLE: str(file)}).block == "by-file"
    assert choose(tmp_path / "elsewhere", file_name="ws.json", environ={}).block == "by-file"


def test_a_bare_name_is_a_block_and_the_error_says_how_to_mean_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config(tmp_path / "team" / "config.json", "inside")
    assert choose("team", environ={}).block == "team"
    assert "./team" in str(choose("team", environ={}).missing())
    assert choose("./team", environ={}).block == "inside"


def test_somebody_elses_config_json_is_passed_by_and_told(tmp_path: Path) -> None:
    """Models and web projects have a config.json, too."""
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    choice = found(tmp_path)
    assert choice.block == "default"
    assert f"{tmp_path / 'config.json'} has no workspace_name" in str(choice.missing())
    (tmp_path / "config.json").write_text("{")
    assert found(tmp_path).block == "default"


@pytest.mark.parametrize("content", ["{", "[]", '{"workspace_name": 3}', '{"workspace_name": "_"}', "{}", "\xff"])
def test_a_broken_file_of_azure_ml_is_an_error_that_names_it_and_quotes_nothing(tmp_path: Path, content: str) -> None:
    place = tmp_path / ".azureml" / "config.json"
    place.parent.mkdir()
    place.write_bytes(content.encode("latin-1"))
    with pytest.raises(SpecificationError, match=str(place)):
        found(tmp_path)


def test_a_byte_order_mark_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b'\xef\xbb\xbf{"workspace_name": "team"}')
    assert found(tmp_path).block == "team"


@pytest.mark.parametrize("path", ["no/such/folder", "Team", "a.json"])
def test_what_is_neither_a_name_nor_a_path_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(DefinitionError, match="neither a block's name"):
        found(tmp_path, path)


def test_a_folder_without_a_config_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError, match=r"names the folder .* no \.azureml/config\.json or config\.json"):
        found(tmp_path, tmp_path)


def test_the_error_lists_all_that_was_tried_and_the_rule_of_names(tmp_path: Path) -> None:
    said = str(found(tmp_path).missing())
    for word in ("the argument: none", f"{VARIABLE}: it is not set", str(tmp_path), "the default", "lower case"):
        assert word in said


@given(st.text(max_size=40))
def test_block_names_are_legal_whatever_the_workspace_is_called(name: str) -> None:
    made = block_name(name)
    assert not made or (made.strip("-") == made and all(c in "abcdefghijklmnopqrstuvwxyz0123456789-" for c in made))
    assert block_name(made) == made

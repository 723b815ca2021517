"""Many environments: folders of specifications, and single flight without anybody waiting for ever."""

import asyncio
import errno
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_environments.core.concurrency import gather
from prefect_environments.core.errors import SpecificationError
from prefect_environments.core.fleet.flights import Flights
from prefect_environments.core.fleet.outcome import FleetOutcome, told
from prefect_environments.core.fleet.specifications import read_folder

V1 = '{"name": "old-iris", "docker": {"baseImage": "python:3.12"}, "python": {"userManagedDependencies": true}}'
LOCK = """lock-version = "1.0"
created-by = "a tool"
[[packages]]
name = "spam"
version = "1.0"
[[packages.wheels]]
name = "spam-1.0-py3-none-any.whl"
url = "https://files.example.com/spam-1.0-py3-none-any.whl"
hashes = {sha256 = "00000000000000000000000000000000000000000000000000000000000000aa"}
"""


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_every_format_is_read_and_named(tmp_path: Path) -> None:
    """By the file's stem, by what the file says, or by its folder where file names say nothing."""
    folder = write(
        tmp_path,
        {
            "iris.txt": "spam\n",
            "conda-file.yml": "name: from-conda\nchannels: [conda-forge]\ndependencies: [python=3.12]\n",
            "unnamed.yaml": "name: project_environment\nchannels: [conda-forge]\ndependencies: [python=3.12]\n",
            "v2.yml": "name: from-v2\nimage: python:3.12\n",
            "Dockerfile.plain": "FROM python:3.12\n",
            "pylock.locked.toml": LOCK,
            "project/pyproject.toml": '[project]\nname = "shop"\nversion = "1"\ndependencies = ["spam"]\n',
            "context/Dockerfile": "FROM python:3.12\nCOPY requirements.txt /\n",
            "context/requirements.txt": "eggs\n",
            "legacy/azureml_environment.json": V1,
            "by-folder/requirements.txt": "ham\n",
            "README.md": "# not a specification\n",
        },
    )
    found = read_folder(folder)
    assert found.unreadable == ()
    by_name = {one.name: one for one in found.definitions}
    assert set(by_name) == {
        *("iris", "from-conda", "unnamed", "from-v2", "plain", "locked"),
        *("shop", "context", "old-iris", "by-folder"),
    }
    assert by_name["iris"].requirements == ("spam",)
    assert by_name["from-conda"].conda_dependencies == ("python=3.12",)
    assert by_name["from-v2"].base_image == "python:3.12"
    assert by_name["plain"].dockerfile == "FROM python:3.12\n"
    assert "spam-1.0" in by_name["locked"].pylock
    assert by_name["shop"].requirements == ("spam",)
    assert by_name["context"].build_context == str(folder / "context")
    assert by_name["old-iris"].user_managed


def test_what_another_file_names_is_no_environment(tmp_path: Path) -> None:
    """Parts are read with the file that names them; so are constraints and what starts with an underscore."""
    folder = write(
        tmp_path,
        {
            "iris.txt": "-r common.txt\n-c limits.txt\nspam\n",
            "common.txt": "eggs\n",
            "limits.txt": "eggs<3\n",
            "constraints-all.txt": "ham<2\n",
            "_shared.txt": "ham\n",
            ".hidden.txt": "ham\n",
            "v2.yml": "name: with-conda\nimage: python:3.12\nconda_file: packages.yml\n",
            "packages.yml": "channels: [conda-forge]\ndependencies: [python=3.12]\n",
            "built.yml": "name: built\nbuild:\n  path: place\n",
            "place/Dockerfile": "FROM python:3.12\n",
        },
    )
    found = read_folder(folder)
    assert [one.name for one in found.definitions] == ["built", "iris", "with-conda"]
    assert found.unreadable == ()
    assert found.definitions[1].requirements == ("eggs", "spam")


def test_an_unreadable_file_is_a_failure_with_its_reason(tmp_path: Path) -> None:
    """Each by itself; the others are read."""
    folder = write(
        tmp_path,
        {
            "good.txt": "spam\n",
            "bad.txt": "--no-such-option\n",
            "broken.yml": "dependencies: [\n",
            "bad name.txt": "spam\n",
            "pylock.toml": "lock-version = 1",
            "legacy/azureml_environment.json": "{",
        },
    )
    found = read_folder(folder)
    assert [one.name for one in found.definitions] == ["good"]
    reasons = {one.name: one.reason for one in found.unreadable}
    assert set(reasons) == {"bad", "broken", "bad name", folder.name, "legacy"}  # pylock.toml says nothing
    assert "no-such-option" in reasons["bad"]
    assert f"{folder / 'broken.yml'}:" in reasons["broken"]
    assert {one.status for one in found.unreadable} == {"failed"}


def test_a_comment_names_no_part_and_an_option_needs_no_blank(tmp_path: Path) -> None:
    """`-rFILE` is read as pip reads it; a word in a comment takes no environment away."""
    folder = write(
        tmp_path,
        {
            "iris.txt": "-rcommon.txt\n--constraint\tlimits.txt\nspam\n",
            "common.txt": "eggs\n",
            "limits.txt": "eggs<3\n",
            "pinned.txt": "# made of -r source.txt\nham==1.0  # via -r source.txt\n",
            "source.txt": "ham\n",
        },
    )
    found = read_folder(folder)
    assert [(one.name, one.requirements) for one in found.definitions] == [
        ("iris", ("eggs", "spam")),
        ("pinned", ("ham==1.0",)),
        ("source", ("ham",)),
    ]


def test_of_a_folder_the_file_that_names_the_others_is_read(tmp_path: Path) -> None:
    """Whatever their order by name; one that names only itself is told as wrong."""
    folder = write(
        tmp_path,
        {
            "team/base.txt": "eggs\n",
            "team/serve.txt": "-r base.txt\nspam\n",
            "own/a.txt": "-r a.txt\n",
        },
    )
    found = read_folder(folder)
    assert [(one.name, one.requirements) for one in found.definitions] == [("team", ("eggs", "spam"))]
    assert [one.name for one in found.unreadable] == ["own"]


def test_a_file_that_breaks_its_reader_stops_no_other(tmp_path: Path) -> None:
    """Such as one that is nested deeper than Python's own parser of TOML can follow."""
    folder = write(tmp_path, {"deep/pyproject.toml": "a = " + "[" * 5000, "good.txt": "spam\n"})
    found = read_folder(folder)
    assert [one.name for one in found.definitions] == ["good"]
    (failure,) = found.unreadable
    assert failure.name == "deep" and "pyproject.toml" in failure.reason


@pytest.mark.parametrize("name", ["missing", "empty", "nul\0"])
def test_a_folder_without_specifications_says_so(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SpecificationError, match=r"holds no specification|cannot read the folder"):
        read_folder(f"{tmp_path}/{name}")


def test_the_folder_of_an_unknown_user_is_refused() -> None:
    with pytest.raises(SpecificationError, match="it is no usable path"):
        read_folder("~nobody-has-this-name/environments")


def test_a_folder_that_may_be_listed_and_not_entered_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the system tells it to all but root, who may enter everything."""
    (tmp_path / "iris.txt").write_text("spam\n")

    def refuse(path: Path) -> bool:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(SpecificationError, match=r"cannot read the folder .*Permission denied"):
        read_folder(tmp_path)


def test_outcomes_are_counted_in_a_fixed_order() -> None:
    several = [FleetOutcome(name=str(n), status=status) for n, status in enumerate(["failed", "ready", "ready"])]  # type: ignore[arg-type]
    assert told(several) == "2 ready, 1 failed"


@settings(max_examples=200, deadline=None)
@given(
    wanted=st.lists(st.lists(st.sampled_from("abcdefgh"), unique=True, min_size=1), min_size=1, max_size=8),
    failing=st.sets(st.integers(0, 7)),
    delays=st.lists(st.integers(0, 3), min_size=8, max_size=8),
)
def test_single_flight_never_waits_for_ever(wanted: list[list[str]], failing: set[int], delays: list[int]) -> None:
    """Builds that send nothing before all they need is checked, as ours do: whatever fails, the others end, and where
    none fails each thing is made once."""
    made: list[str] = []

    async def build(flights: Flights[str], number: int, keys: list[str]) -> None:
        checked, left = asyncio.Event(), set(keys)

        async def one(key: str) -> None:
            found = await flights.find(key)
            if found is None:
                for _ in range(delays[number]):
                    await asyncio.sleep(0)
            left.discard(key)
            if not left:
                checked.set()
            if found is None:
                await checked.wait()
                if number in failing:
                    raise ValueError
                made.append(key)
                flights.land(key, key)

        with flights.turn():
            await gather(map(one, keys))

    async def all_builds() -> list[BaseException | None]:
        flights: Flights[str] = Flights()
        builds = (build(flights, number, keys) for number, keys in enumerate(wanted))
        async with asyncio.timeout(20):
            return await asyncio.gather(*builds, return_exceptions=True)

    results = asyncio.run(all_builds())
    assert all(error is None or isinstance(error, ValueError) for error in results)
    assert all(error is None for number, error in enumerate(results) if number not in failing)
    if not failing & set(range(len(wanted))):
        assert sorted(made) == sorted({key for keys in wanted for key in keys})

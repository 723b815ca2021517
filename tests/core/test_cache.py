"""The local cache keeps to its size, and takes away nothing that somebody uses."""

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prefect_environments.core import cache
from prefect_environments.core.errors import DefinitionError
from prefect_environments.core.site import open_site
from tests.images.parts import Team

BLOCK = 100_000


def put(path: Path, age: float, size: int = BLOCK) -> Path:
    """A file that was last used `age` hours ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(size))
    then = time.time() - age * 3600
    os.utime(path, (then, then))
    return path


def environment(folder: Path, name: str, age: float) -> Path:
    made = folder / "environments" / name
    put(made / "lib" / "module.py", age)
    then = time.time() - age * 3600
    for place in (made / "lib", made):
        os.utime(place, (then, then))
    return made


def test_what_was_used_the_longest_ago_goes_until_the_rest_fits(tmp_path: Path) -> None:
    old, older = put(tmp_path / "wheels" / "a", 100), put(tmp_path / "built" / "b", 200)
    oldest, new = put(tmp_path / "conda" / "c.json", 300), put(tmp_path / "wheels" / "d", 30)
    foreign = put(tmp_path / "something" / "else", 900)
    removed = cache.trim(tmp_path, 2 * BLOCK + BLOCK // 2)
    assert 2 * BLOCK <= removed < 3 * BLOCK
    assert [path.exists() for path in (old, older, oldest, new, foreign)] == [True, False, False, True, True]
    assert cache.trim(tmp_path, 10 * BLOCK) == 0


def test_what_was_used_in_the_last_day_stays_even_if_it_is_too_much(tmp_path: Path) -> None:
    read, written = put(tmp_path / "wheels" / "read", 900), put(tmp_path / "wheels" / "written", 1)
    os.utime(read, (time.time(), time.time() - 900 * 3600))
    assert cache.trim(tmp_path, 0) == 0 and read.exists() and written.exists()


def test_an_environment_in_which_a_job_runs_stays_and_goes_once_it_has_ended(tmp_path: Path) -> None:
    used, free = environment(tmp_path, "aa", 500), environment(tmp_path, "bb-1", 400)
    lock = put(used.with_name("aa.used"), 500, 0)
    with lock.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        cache.trim(tmp_path, 0)
        assert used.exists() and not free.exists()
    cache.trim(tmp_path, 0)
    assert not used.exists() and lock.exists()  # whoever waits for the lock holds the file's one


def test_an_environment_that_is_being_made_stays(tmp_path: Path) -> None:
    made = environment(tmp_path, "aa-3", 500)
    with made.with_name("aa.lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        cache.trim(tmp_path, 0)
        assert made.exists()


def uv_cache(folder: Path, age: float) -> Path:
    """uv's own cache, last used `age` hours ago."""
    put(folder / "uv" / ".lock", age, 0)
    unpacked = put(folder / "uv" / "archive-v0" / "abc" / "module.py", age)
    then = time.time() - age * 3600
    for place in (*unpacked.parents,)[:3]:
        os.utime(place, (then, then))
    return unpacked


def test_the_cache_of_uv_counts_and_goes_as_a_whole_unless_uv_works_in_it(tmp_path: Path) -> None:
    """Its lock stays: a uv that waits for it goes on in an empty cache."""
    young, old = uv_cache(tmp_path / "a", 1), uv_cache(tmp_path / "b", 500)
    assert cache.trim(tmp_path / "a", 0) == 0 and young.exists()
    with (tmp_path / "b" / "uv" / ".lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        assert cache.trim(tmp_path / "b", 0) == 0 and old.exists()
    assert cache.trim(tmp_path / "b", 2 * BLOCK) == 0 and old.exists()
    newer = put(tmp_path / "b" / "wheels" / "newer", 400)
    assert cache.trim(tmp_path / "b", BLOCK + BLOCK // 2) >= BLOCK
    assert newer.exists() and [path.name for path in (tmp_path / "b" / "uv").iterdir()] == [".lock"]


def test_temporary_files_of_builds_are_left_to_them(tmp_path: Path) -> None:
    half = put(tmp_path / "wheels" / "tmp-abc", 900)
    cache.trim(tmp_path, 0)
    assert half.exists()


def test_files_with_several_names_are_not_counted_twice(tmp_path: Path) -> None:
    first = put(tmp_path / "wheels" / "a", 100)
    (tmp_path / "named" / "a").mkdir(parents=True)
    os.link(first, tmp_path / "named" / "a" / "a.whl")
    assert cache.trim(tmp_path, BLOCK + BLOCK // 10) == 0


def test_processes_that_trim_and_write_at_the_same_time_hurt_nobody(tmp_path: Path) -> None:
    for number in range(60):
        put(tmp_path / "wheels" / f"w{number}", 100 + number, 5000)
    code = (
        "import sys; from pathlib import Path; from prefect_environments.core import cache, files\n"
        "place = Path(sys.argv[1])\n"
        "for n in range(30):\n"
        "    files.write_atomically(place / 'wheels' / f'{sys.argv[2]}-{n}', b'x' * 5000, place / 'wheels')\n"
        "    cache.trim(place, 100_000)\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, tmp_path, str(n)]) for n in range(3)]
    assert [process.wait(120) for process in running] == [0, 0, 0]
    names = {path.name for path in (tmp_path / "wheels").iterdir()}
    assert {f"{n}-{m}" for n in range(3) for m in range(30)} <= names  # new ones are in use
    assert not any(name.startswith("w") for name in names)


def test_the_size_is_looked_at_once_an_hour(tmp_path: Path) -> None:
    put(tmp_path / "wheels" / "a", 100)
    assert cache.trim_now_and_then(tmp_path, 0) > 0
    put(tmp_path / "wheels" / "b", 100)
    assert cache.trim_now_and_then(tmp_path, 0) == 0
    os.utime(tmp_path / ".trimmed", (0, 0))
    assert cache.trim_now_and_then(tmp_path, 0) > 0
    assert cache.trim_now_and_then(tmp_path / "nothing", 0) == 0


@pytest.mark.parametrize(
    ("text", "size"),
    [("20GB", 20 * 10**9), ("1.5 GiB", 3 * 2**29), ("500MB", 5 * 10**8), ("4096", 4096), ("", cache.DEFAULT)],
)
def test_the_limit_is_a_size_as_people_write_it(text: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.VARIABLE, text)
    assert cache.limit() == size


async def test_a_limit_that_is_no_size_is_refused_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cache.VARIABLE, "plenty")
    with pytest.raises(DefinitionError, match=r"'plenty', which is no size; write 20GB"):
        async with open_site(Team.on(tmp_path / "images", tmp_path / "versions"), cache=tmp_path / "cache"):
            raise AssertionError("a site was opened")


async def test_the_end_of_a_build_brings_the_cache_to_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.VARIABLE, "1kB")
    old = put(tmp_path / "cache" / "wheels" / "a", 100)
    async with open_site(Team.on(tmp_path / "images", tmp_path / "versions"), cache=tmp_path / "cache"):
        assert old.exists()
    assert not old.exists()


def test_what_may_not_be_removed_does_not_keep_the_rest(tmp_path: Path) -> None:
    """As on a cache that several users share: here a folder of packages whose files nobody may remove."""
    fixed, own = put(tmp_path / "wheels" / "fixed", 900), put(tmp_path / "built" / "own", 300)
    subprocess.run(["chattr", "+i", fixed], check=False, capture_output=True)
    try:
        fixed.touch()
    except PermissionError:
        pass
    else:
        pytest.skip("this file system knows no files that nobody may remove")
    try:
        assert cache.trim(tmp_path, 0) > 0
        assert fixed.exists() and not own.exists()
    finally:
        subprocess.run(["chattr", "-i", fixed], check=True)


def test_a_full_disk_is_no_reason_to_keep_the_cache(tmp_path: Path) -> None:
    """Without room for another file, such as a lock or a mark: here because the folder takes no new names."""
    old = put(tmp_path / "wheels" / "old", 900)
    subprocess.run(["chattr", "+i", tmp_path], check=False, capture_output=True)
    try:
        (tmp_path / "new").touch()
    except PermissionError:
        pass
    else:
        pytest.skip("this file system knows no folders that take no new names")
    try:
        assert cache.trim_now_and_then(tmp_path, 0) > 0 and not old.exists()
    finally:
        subprocess.run(["chattr", "-i", tmp_path], check=True)

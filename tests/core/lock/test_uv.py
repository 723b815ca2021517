"""Resolving with the real uv against a real index on this machine."""

import asyncio
import hashlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prefect_environments.core.errors import NoFittingWheel, ResolveError
from prefect_environments.core.lock.model import Lock
from prefect_environments.core.lock.target import Platform, Target
from prefect_environments.core.lock.uv import UvResolver, uv_platform
from tests.core.lock.conftest import BASE, TARGET, Request
from tests.support.jobs import is_alive, until
from tests.support.wheels import Index, make_sdist, make_wheel, serve_index


def versions(lock: Lock) -> dict[str, str]:
    return {package.name: package.version for package in lock.packages}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


async def test_a_lock_pins_every_package_with_its_file_and_hash(
    files: Path, index: Index, resolver: UvResolver, request_for: Request
) -> None:
    make_wheel(files, "leaf", "1.0")
    wheel = make_wheel(files, "top", "2.0", requires=["leaf"])
    lock = await resolver.resolve(request_for("top"))
    assert versions(lock) == {"leaf": "1.0", "pip": "26.1", "top": "2.0"}
    top = lock.packages[-1]
    assert (top.filename, top.sha256) == (wheel.name, sha256(wheel))
    assert top.url == index.url.replace("simple/", "files/") + wheel.name
    assert (lock.base, lock.target, lock.requested) == (BASE, TARGET, ("top",))
    assert Lock.from_pylock(lock.to_pylock()) == lock


async def test_pip_is_in_every_environment_at_the_version_the_definition_names(
    files: Path, resolver: UvResolver, request_for: Request
) -> None:
    make_wheel(files, "pip", "25.0")
    assert versions(await resolver.resolve(request_for("PIP<26"))) == {"pip": "25.0"}


async def test_a_version_with_only_a_dynamic_sdist_is_named_and_its_code_does_not_run(
    files: Path, resolver: UvResolver, request_for: Request, ran: Path
) -> None:
    """demo 2.0 must not be replaced by demo 1.0, which has a wheel, and learning its needs would run its backend."""
    make_wheel(files, "demo", "1.0")
    make_sdist(files, "demo", "2.0", dynamic=True)
    with pytest.raises(NoFittingWheel, match=r"demo 2\.0") as caught:
        await resolver.resolve(request_for("demo"))
    assert "allow_source_builds" in str(caught.value)
    assert "3.12.7" in str(caught.value)
    assert not ran.exists()


async def test_a_version_with_only_a_static_sdist_is_named(
    files: Path, resolver: UvResolver, request_for: Request, ran: Path
) -> None:
    make_wheel(files, "demo", "1.0")
    make_sdist(files, "demo", "2.0")
    with pytest.raises(NoFittingWheel, match=r"demo 2\.0: a source distribution"):
        await resolver.resolve(request_for("demo"))
    assert not ran.exists()


async def test_a_build_requirement_with_a_pth_file_does_not_run_either(
    files: Path, resolver: UvResolver, request_for: Request, ran: Path
) -> None:
    """Site reads .pth files before anything else: the interpreter must not come that far."""
    code = f"import pathlib; pathlib.Path({str(ran)!r}).write_text('pth')\n"
    make_wheel(files, "hook", "1.0", {"hook.py": b"", "hook.pth": code.encode()})
    sdist = make_sdist(files, "demo", "2.0", {"demo.py": b""}, dynamic=True, build_requires=["hook"])
    with pytest.raises(NoFittingWheel, match="demo 2"):
        await resolver.resolve(request_for("demo"))
    assert not ran.exists()
    allowed = await resolver.resolve(request_for("demo", allow_source_builds=True))
    assert versions(allowed)["demo"] == "2.0"
    assert ran.exists(), f"{sdist.name} proves nothing if its hook never runs"


async def test_every_package_without_a_wheel_is_named_with_what_there_is(
    files: Path, resolver: UvResolver, request_for: Request
) -> None:
    make_sdist(files, "one", "1.0")
    make_wheel(files, "two", "2.0", tag="cp312-cp312-macosx_11_0_arm64")
    make_sdist(files, "two", "2.0")
    with pytest.raises(NoFittingWheel) as caught:
        await resolver.resolve(request_for("one", "two"))
    text = str(caught.value)
    assert "one 1.0: a source distribution" in text
    assert re.search("two 2.0: .*a source distribution", text)
    assert "cp312-cp312-manylinux_2_36_x86_64" in text


async def test_a_package_with_wheels_for_other_platforms_only_is_no_fitting_wheel(
    files: Path, resolver: UvResolver, request_for: Request
) -> None:
    make_wheel(files, "two", "2.0", tag="cp312-cp312-macosx_11_0_arm64")
    with pytest.raises(NoFittingWheel, match="macosx_11_0_arm64"):
        await resolver.resolve(request_for("two"))


async def test_a_conflict_is_explained_whole_and_says_what_was_asked(
    files: Path, resolver: UvResolver, request_for: Request
) -> None:
    make_wheel(files, "leaf", "1.0")
    make_wheel(files, "leaf", "2.0")
    make_wheel(files, "top", "1.0", requires=["leaf<2"])
    with pytest.raises(ResolveError) as caught:
        await resolver.resolve(request_for("top", "leaf>=2"))
    text = str(caught.value)
    assert "Python 3.12.7, glibc 2.36, linux/amd64" in text.splitlines()[0]
    assert "top" in text and "leaf<2" in text and "leaf>=2" in text
    assert "\x1b[" not in text and "is not available" not in text


async def test_constraints_narrow_and_pre_allows_pre_releases(
    files: Path, resolver: UvResolver, request_for: Request
) -> None:
    for version in ("1.0", "2.0", "3.0rc1"):
        make_wheel(files, "demo", version)
    assert versions(await resolver.resolve(request_for("demo")))["demo"] == "2.0"
    assert versions(await resolver.resolve(request_for("demo", constraints=("demo<2",))))["demo"] == "1.0"
    assert versions(await resolver.resolve(request_for("demo", pre=True)))["demo"] == "3.0rc1"


async def test_markers_are_those_of_the_image(files: Path, resolver: UvResolver, request_for: Request) -> None:
    make_wheel(files, "leaf", "1.0")
    make_wheel(files, "old", "1.0")
    needs = ["leaf; python_version == '3.12'", "old; platform_machine == 'aarch64'"]
    make_wheel(files, "top", "1.0", requires=needs)
    lock = await resolver.resolve(request_for("top", "old; sys_platform == 'win32'"))
    assert set(versions(lock)) == {"leaf", "pip", "top"}
    arm = replace(TARGET, platform=Platform("arm64"), python="3.13.1")
    assert set(versions(await resolver.resolve(request_for("top", target=arm)))) == {"old", "pip", "top"}


async def test_the_wheel_is_for_the_image_and_not_for_this_machine(
    files: Path, resolver: UvResolver, request_for: Request
) -> None:
    for platform in ("manylinux_2_28_x86_64", "musllinux_1_2_x86_64", "manylinux_2_28_aarch64"):
        make_wheel(files, "fast", "1.0", tag=f"cp312-cp312-{platform}")
    musl = Target("3.12.7", "/usr/bin/python3", "musl", "1.2")
    arm = replace(TARGET, platform=Platform("arm64"))
    for target, platform in ((TARGET, "manylinux_2_28_x86"), (musl, "musllinux_1_2_x86"), (arm, "2_28_aarch64")):
        lock = await resolver.resolve(request_for("fast", target=target))
        assert platform in lock.packages[0].filename


async def test_one_added_package_moves_no_other(files: Path, resolver: UvResolver, request_for: Request) -> None:
    make_wheel(files, "demo", "1.0")
    first = await resolver.resolve(request_for("demo"))
    make_wheel(files, "demo", "2.0")
    make_wheel(files, "added", "1.0")
    kept = await resolver.resolve(request_for("demo", "added", preferences=first))
    assert versions(kept) == {"added": "1.0", "demo": "1.0", "pip": "26.1"}
    moved = await resolver.resolve(request_for("demo", "added", preferences=first, upgrade=True))
    assert versions(moved)["demo"] == "2.0"


async def test_a_preference_yields_to_a_requirement(files: Path, resolver: UvResolver, request_for: Request) -> None:
    make_wheel(files, "demo", "1.0")
    first = await resolver.resolve(request_for("demo"))
    make_wheel(files, "demo", "2.0")
    lock = await resolver.resolve(request_for("demo>=2", preferences=first))
    assert versions(lock)["demo"] == "2.0"


async def test_a_better_file_of_a_kept_version_does_not_move_the_lock(
    files: Path, resolver: UvResolver, request_for: Request
) -> None:
    make_wheel(files, "demo", "1.0")
    first = await resolver.resolve(request_for("demo"))
    make_wheel(files, "demo", "1.0", build="2")
    make_wheel(files, "demo", "1.0", tag="cp312-cp312-manylinux_2_28_x86_64")
    assert await resolver.resolve(request_for("demo", preferences=first)) == first
    fresh = await resolver.resolve(request_for("demo", preferences=first, upgrade=True))
    assert "manylinux" in fresh.packages[0].filename


async def test_hash_options_choose_among_wheels_and_refuse_others(
    files: Path, resolver: UvResolver, request_for: Request
) -> None:
    plain = make_wheel(files, "demo", "1.0")
    make_wheel(files, "demo", "1.0", build="2")
    lock = await resolver.resolve(request_for(f"demo==1.0 --hash=sha256:{sha256(plain)} --hash=sha256:{'0' * 64}"))
    assert lock.packages[0].filename == plain.name
    with pytest.raises(ResolveError, match=r"no wheel of demo 1\.0 .* --hash"):
        await resolver.resolve(request_for(f"demo==1.0 --hash=sha256:{'0' * 64}"))


async def test_find_links_and_no_index_need_no_index(files: Path, resolver: UvResolver, request_for: Request) -> None:
    wheel = make_wheel(files, "demo", "1.0")
    lock = await resolver.resolve(request_for("demo", index_url=None, no_index=True, find_links=(str(files),)))
    assert lock.packages[0].url == wheel.as_uri()
    assert lock.packages[0].sha256 == sha256(wheel)


@pytest.mark.parametrize("names", [("demo",), (":all:",)])
async def test_only_binary_takes_the_newest_version_that_has_a_wheel(
    names: tuple[str, ...], files: Path, resolver: UvResolver, request_for: Request
) -> None:
    """What is an error without it: see above, a version with only an sdist is never passed over unasked."""
    make_wheel(files, "demo", "1.0")
    make_sdist(files, "demo", "2.0")
    with pytest.raises(NoFittingWheel, match=r"demo 2\.0"):
        await resolver.resolve(request_for("demo"))
    assert versions(await resolver.resolve(request_for("demo", only_binary=names)))["demo"] == "1.0"


async def test_wheels_by_address_and_by_path_are_taken_as_they_are(
    files: Path, index: Index, resolver: UvResolver, request_for: Request, tmp_path: Path
) -> None:
    remote = make_wheel(files, "remote", "1.0")
    local = make_wheel(tmp_path / "own", "local", "1.0")
    address = index.url.replace("simple/", "files/") + remote.name
    lock = await resolver.resolve(request_for(f"remote @ {address}", str(local)))
    found = {package.name: package for package in lock.packages}
    assert (found["remote"].url, found["remote"].sha256) == (address, sha256(remote))
    assert (found["local"].url, found["local"].sha256) == (local.as_uri(), sha256(local))


async def test_the_first_index_decides_unless_pips_way_is_chosen(
    files: Path, environ: dict[str, str], resolver: UvResolver, request_for: Request, tmp_path: Path
) -> None:
    """A higher version of a private package in a public index must not win (dependency confusion)."""
    make_wheel(files, "private", "99.0")
    make_wheel(tmp_path / "extra", "private", "1.0")
    with serve_index(tmp_path / "extra") as extra:
        asked = request_for("private", extra_index_urls=(extra.url,))
        assert versions(await resolver.resolve(asked))["private"] == "1.0"
        as_pip = UvResolver(environ=environ, index_strategy="unsafe-best-match")
        assert versions(await as_pip.resolve(asked))["private"] == "99.0"


@pytest.mark.parametrize("place", ["host", "prefix", "address"])
async def test_credentials_open_an_index_and_appear_nowhere(
    files: Path, resolver: UvResolver, request_for: Request, place: str
) -> None:
    make_wheel(files, "demo", "1.0")
    password = "p#ss wörd:/@1"
    with serve_index(files, auth=("user", password), query="?sig=s3cr3t") as private:
        host = private.url.split("/")[2]
        choices: dict[str, dict[str, Any]] = {
            "host": {"index_url": private.url, "index_credentials": {host: ("user", password)}},
            "prefix": {"index_url": private.url, "index_credentials": {f"http://{host}/": ("user", password)}},
            "address": {"index_url": private.url.replace("//", "//user:p%23ss%20w%C3%B6rd:%2F%401@")},
        }
        options = choices[place]
        lock = await resolver.resolve(request_for("demo", **options))
        assert f"/files/{lock.packages[0].filename}" in private.requests
        for secret in (password, "s3cr3t", "%40", "user:"):
            assert secret not in lock.to_pylock()
        with pytest.raises(ResolveError) as caught:
            await resolver.resolve(request_for("demo>9", **options))
        assert password not in str(caught.value) and "w%C3" not in str(caught.value)
        with pytest.raises(ResolveError, match="index refused the credentials"):
            await resolver.resolve(request_for("other", index_url=private.url))


async def test_credentials_reach_direct_addresses_and_find_links(
    files: Path, resolver: UvResolver, request_for: Request
) -> None:
    wheel = make_wheel(files, "demo", "1.0")
    with serve_index(files, auth=("user", "word-1234")) as private:
        address = private.url.replace("simple/", "files/") + wheel.name
        lock = await resolver.resolve(
            request_for(f"demo @ {address}", index_credentials={"127.0.0.1": ("user", "word-1234")})
        )
        assert lock.packages[0].url == address
        inline = f"demo @ {address.replace('//', '//user:word-1234@')}"
        lock = await resolver.resolve(request_for(inline))
        assert lock.packages[0].url == address and "word" not in lock.to_pylock()
        pages = [private.url.replace("//", "//user:word-1234@") + name for name in ("demo/", "pip/")]
        found = await resolver.resolve(request_for("demo", index_url=None, no_index=True, find_links=tuple(pages)))
        assert found.packages[0].url == address
        assert "word" not in found.to_pylock()


def test_a_request_does_not_show_credentials(request_for: Request) -> None:
    assert "hidden" not in repr(request_for("demo", index_credentials={"example.com": ("user", "hidden")}))


async def test_the_workers_settings_change_no_lock_but_may_name_the_index(
    files: Path, index: Index, environ: dict[str, str], request_for: Request, tmp_path: Path
) -> None:
    for version in ("1.0", "2.0", "3.0rc1"):
        make_wheel(files, "demo", version)
    bad = tmp_path / "bad.txt"
    bad.write_text("demo==1.0\n")
    settings = {
        "UV_DEFAULT_INDEX": index.url,
        "UV_RESOLUTION": "lowest",
        "UV_PRERELEASE": "allow",
        "UV_CONSTRAINT": str(bad),
        "UV_OVERRIDE": str(bad),
        "UV_EXCLUDE_NEWER": "2001-01-01",
        "UV_TORCH_BACKEND": "cpu",
        "PYTHONHOME": "/nonexistent",
    }
    lock = await UvResolver(environ=environ | settings).resolve(request_for("demo", index_url=None))
    assert versions(lock)["demo"] == "2.0"


async def test_exclude_newer_is_passed_on(files: Path, resolver: UvResolver, request_for: Request) -> None:
    """The index tells no upload times, so that uv refuses its files when a date counts."""
    make_wheel(files, "demo", "1.0")
    with pytest.raises(ResolveError, match="demo"):
        await resolver.resolve(request_for("demo", exclude_newer="2020-01-01"))


async def test_cancelling_ends_uv_and_leaves_no_folder(
    environ: dict[str, str], request_for: Request, tmp_path: Path
) -> None:
    """A stand-in for uv that never ends: what counts is that it and its child are gone."""
    scratch = tmp_path / "scratch"
    pids = tmp_path / "pids"
    slow = tmp_path / "slow"
    slow.write_text(f"#!/bin/sh\nsleep 600 &\necho $$ $! > {pids}.new\nmv {pids}.new {pids}\nwait\n")
    slow.chmod(0o700)
    task = asyncio.create_task(UvResolver(environ=environ, uv=str(slow), scratch=scratch).resolve(request_for("demo")))
    await until(lambda: pids.exists() or task.done())
    folders = list(scratch.glob("*.d"))
    assert [folder.stat().st_mode & 0o777 for folder in folders] == [0o700]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert list(scratch.iterdir()) == []
    killed = [int(pid) for pid in pids.read_text().split()]
    await until(lambda: not any(is_alive(pid) for pid in killed))


async def test_a_resolver_that_takes_too_long_is_stopped(
    environ: dict[str, str], request_for: Request, tmp_path: Path
) -> None:
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nsleep 600\n")
    slow.chmod(0o700)
    with pytest.raises(ResolveError, match=r"longer than 0\.2 seconds"):
        await UvResolver(environ=environ, uv=str(slow), timeout=0.2).resolve(request_for("demo"))


async def test_a_missing_uv_is_an_error_of_ours(environ: dict[str, str], request_for: Request) -> None:
    with pytest.raises(ResolveError, match="cannot be started"):
        await UvResolver(environ=environ, uv="/nonexistent/uv").resolve(request_for("demo"))


@pytest.mark.parametrize(
    ("libc", "version", "architecture", "expected"),
    [
        ("glibc", "2.17", "amd64", "x86_64-manylinux_2_17"),
        ("glibc", "2.30", "amd64", "x86_64-manylinux_2_28"),
        ("glibc", "2.36", "arm64", "aarch64-manylinux_2_36"),
        ("glibc", "2.43", "amd64", "x86_64-manylinux_2_40"),
        ("musl", "1.2", "arm64", "aarch64-unknown-linux-musl"),
    ],
)
def test_uv_gets_the_greatest_glibc_that_it_knows_and_the_image_has(
    libc: str, version: str, architecture: str, expected: str
) -> None:
    assert uv_platform(Target("3.12.7", "/usr/bin/python3", libc, version, Platform(architecture))) == expected


def test_a_glibc_before_2_17_is_refused() -> None:
    with pytest.raises(ResolveError, match=r"2\.17 or newer"):
        uv_platform(replace(TARGET, libc_version="2.12"))


@pytest.mark.network
async def test_real_packages_resolve_for_another_platform(environ: dict[str, str], request_for: Request) -> None:
    lock = await UvResolver(environ=environ).resolve(request_for("numpy==2.1.0", "six==1.16.0", index_url=None))
    found = {package.name: package for package in lock.packages}
    assert found["numpy"].filename == "numpy-2.1.0-cp312-cp312-manylinux_2_17_x86_64.manylinux2014_x86_64.whl"
    assert found["six"].sha256 == "8abb2f1d86890a2dfb989f9a77cfcfd3e47c2a354b01111771326f8aa26e0254"
    assert found["pip"].size


async def test_in_hash_checking_mode_every_package_needs_a_hash(
    files: Path, resolver: UvResolver, request_for: Request
) -> None:
    """As in pip: one hash among the requirements asks for hashes of all packages, dependencies included."""
    leaf = make_wheel(files, "leaf", "1.0")
    demo = make_wheel(files, "demo", "1.0", requires=["leaf"])
    lines = [
        f"{w.name.split('-')[0]}==1.0 --hash=sha256:{hashlib.sha256(w.read_bytes()).hexdigest()}" for w in (demo, leaf)
    ]
    with pytest.raises(ResolveError, match=r"leaf has none.*--generate-hashes"):
        await resolver.resolve(replace(request_for(lines[0]), require_hashes=True))
    lock = await resolver.resolve(replace(request_for(*lines), require_hashes=True))
    assert {"demo", "leaf"} <= versions(lock).keys()


async def test_an_index_that_cannot_be_reached_is_told_as_that(resolver: UvResolver, request_for: Request) -> None:
    with pytest.raises(ResolveError, match="could not be read"):
        await resolver.resolve(request_for("demo", index_url="http://127.0.0.1:1/simple"))

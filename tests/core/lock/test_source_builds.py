"""Sources are built once, by the real uv, into wheels that run anywhere."""

import hashlib
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from uv import find_uv_bin

from prefect_environments.core.errors import NoFittingWheel, PackageError, ResolveError
from prefect_environments.core.lock.pylock import SourcePackage
from prefect_environments.core.lock.source_builds import BuildSettings, FolderWheelStore, build_wheel, source_key
from prefect_environments.core.lock.uv import UvResolver
from tests.core.lock.conftest import TARGET, Request
from tests.support.wheels import make_sdist, serve_index, source_tree


def write_tree(folder: Path, tree: Mapping[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for path, content in tree.items():
        (folder / path).write_bytes(content)
    return folder


def runs(ran: Path) -> int:
    return len(ran.read_text().split()) if ran.exists() else 0


async def test_an_sdist_becomes_a_wheel_once(
    files: Path, resolver: UvResolver, store: FolderWheelStore, request_for: Request, ran: Path
) -> None:
    """The second lock is equal and comes from the store; a built wheel has no address."""
    make_sdist(files, "demo", "2.0")
    asked = request_for("demo", allow_source_builds=True)
    lock = await resolver.resolve(asked)
    package = lock.packages[0]
    assert (package.name, package.version, package.filename) == ("demo", "2.0", "demo-2.0-py3-none-any.whl")
    assert package.url is None and runs(ran) == 1
    wheel = await store.fetch(package.sha256)
    assert wheel is not None and hashlib.sha256(wheel.read_bytes()).hexdigest() == package.sha256
    assert wheel.stat().st_size == package.size
    assert await resolver.resolve(asked) == lock
    assert await resolver.resolve(request_for("demo", allow_source_builds=True, preferences=lock)) == lock
    assert runs(ran) == 1


async def test_what_a_dynamic_sdist_needs_is_found_by_its_build(
    files: Path, resolver: UvResolver, request_for: Request
) -> None:
    make_sdist(files, "leaf", "1.0")
    make_sdist(files, "demo", "2.0", dynamic=True, requires=["leaf"])
    lock = await resolver.resolve(request_for("demo", allow_source_builds=True))
    assert [package.name for package in lock.packages] == ["demo", "leaf", "pip"]


async def test_a_local_directory_is_built_again_only_when_its_content_changes(
    resolver: UvResolver, request_for: Request, ran: Path, tmp_path: Path
) -> None:
    """What the build writes stays out of the user's folder."""
    folder = write_tree(tmp_path / "project", source_tree("demo", "1.0"))
    before = sorted(folder.iterdir())
    asked = request_for(str(folder), allow_source_builds=True)
    first = await resolver.resolve(asked)
    assert (await resolver.resolve(asked), runs(ran)) == (first, 1)
    assert sorted(folder.iterdir()) == before
    (folder / "demo.py").write_text("changed = True\n")
    second = await resolver.resolve(asked)
    assert runs(ran) == 2
    assert second.packages[0].sha256 != first.packages[0].sha256
    with pytest.raises(NoFittingWheel, match=r"demo: a source directory"):
        await resolver.resolve(request_for(str(folder)))


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, "-C", str(folder), *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


async def test_a_git_requirement_is_built_at_its_commit(
    resolver: UvResolver, request_for: Request, ran: Path, tmp_path: Path
) -> None:
    folder = write_tree(tmp_path / "repo" / "sub", source_tree("demo", "1.0")).parent
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "one")
    commit = git(folder, "rev-parse", "HEAD")
    (folder / "sub" / "demo.py").write_text("later = True\n")
    git(folder, "commit", "--quiet", "-am", "two")
    line = f"demo @ git+{folder.as_uri()}@{commit}#subdirectory=sub"
    lock = await resolver.resolve(request_for(line, allow_source_builds=True))
    assert lock.packages[0].filename == "demo-1.0-py3-none-any.whl"
    assert await resolver.resolve(request_for(line, allow_source_builds=True)) == lock
    assert runs(ran) == 1
    with pytest.raises(NoFittingWheel, match=commit):
        await resolver.resolve(request_for(line))


async def test_a_compiled_wheel_is_refused_and_points_to_a_dockerfile(
    files: Path, resolver: UvResolver, request_for: Request
) -> None:
    make_sdist(files, "demo", "2.0", tag="cp312-cp312-linux_x86_64")
    with pytest.raises(NoFittingWheel, match="Dockerfile"):
        await resolver.resolve(request_for("demo", allow_source_builds=True))


async def test_a_pure_wheel_for_another_python_is_refused(
    files: Path, resolver: UvResolver, request_for: Request
) -> None:
    make_sdist(files, "demo", "2.0", tag="py2-none-any")
    with pytest.raises(NoFittingWheel, match="py2-none-any"):
        await resolver.resolve(request_for("demo", allow_source_builds=True))


async def test_a_failed_build_shows_the_end_of_its_output(
    files: Path, resolver: UvResolver, request_for: Request
) -> None:
    backend = "def build_wheel(*a):\n    print('x' * 50_000)\n    raise RuntimeError('the reason')\n"
    make_sdist(files, "demo", "2.0", backend=backend)
    with pytest.raises(ResolveError, match="the reason") as caught:
        await resolver.resolve(request_for("demo", allow_source_builds=True))
    assert "demo 2.0" in str(caught.value) and len(str(caught.value)) < 10_000


async def test_the_sources_hash_must_be_among_the_hash_options(
    files: Path, resolver: UvResolver, request_for: Request, ran: Path
) -> None:
    sdist = make_sdist(files, "demo", "2.0")
    wrong = request_for(f"demo==2.0 --hash=sha256:{'0' * 64}", allow_source_builds=True)
    with pytest.raises(ResolveError, match="--hash"):
        await resolver.resolve(wrong)
    assert runs(ran) == 0
    right = hashlib.sha256(sdist.read_bytes()).hexdigest()
    lock = await resolver.resolve(request_for(f"demo==2.0 --hash=sha256:{right}", allow_source_builds=True))
    assert lock.packages[0].version == "2.0"


async def test_an_sdist_behind_a_login_is_downloaded_with_it(
    files: Path, resolver: UvResolver, request_for: Request
) -> None:
    make_sdist(files, "demo", "2.0")
    with serve_index(files, auth=("user", "word-1234")) as private:
        credentials = {private.url: ("user", "word-1234")}
        asked = request_for("demo", index_url=private.url, index_credentials=credentials, allow_source_builds=True)
        assert (await resolver.resolve(asked)).packages[0].version == "2.0"


@pytest.fixture
def settings(environ: dict[str, str]) -> BuildSettings:
    return BuildSettings(find_uv_bin(), environ, TARGET, options=("--no-index",))


async def test_an_altered_sdist_is_refused_before_its_code_runs(
    tmp_path: Path, settings: BuildSettings, ran: Path
) -> None:
    sdist = make_sdist(tmp_path, "demo", "1.0")
    source = SourcePackage("demo", sdist.as_uri(), "1.0", "0" * 64)
    with pytest.raises(PackageError, match="does not have the sha256"):
        await build_wheel(source, into=tmp_path / "out", settings=settings)
    assert runs(ran) == 0


async def test_equal_sources_give_equal_wheels(tmp_path: Path, settings: BuildSettings) -> None:
    built = []
    for place in ("a", "b"):
        folder = write_tree(tmp_path / place, source_tree("demo", "1.0"))
        built.append(
            await build_wheel(SourcePackage("demo", folder.as_uri()), into=tmp_path / f"out-{place}", settings=settings)
        )
    assert built[0] == built[1]


async def test_a_wheel_of_another_package_is_refused(tmp_path: Path, settings: BuildSettings) -> None:
    folder = write_tree(tmp_path / "tree", source_tree("other", "1.0"))
    with pytest.raises(ResolveError, match="another package"):
        await build_wheel(SourcePackage("demo", folder.as_uri()), into=tmp_path / "out", settings=settings)


async def test_a_source_that_cannot_be_had_is_an_error_of_ours(tmp_path: Path, settings: BuildSettings) -> None:
    for source in (
        SourcePackage("demo", (tmp_path / "none.tar.gz").as_uri(), sha256="0" * 64),
        SourcePackage("demo", "http://127.0.0.1:1/demo-1.tar.gz", sha256="0" * 64),
        SourcePackage("demo", (tmp_path / "none.git").as_uri(), commit="c0ffee"),
    ):
        with pytest.raises(ResolveError, match=r"demo.* cannot be"):
            await build_wheel(source, into=tmp_path / "out", settings=settings)
    with pytest.raises(ResolveError, match="cannot be read"):
        source_key(SourcePackage("demo", (tmp_path / "none").as_uri()))


def test_a_directorys_key_is_its_names_kinds_and_contents(tmp_path: Path) -> None:
    """Times and places do not count, nor do version control and caches."""

    def key(folder: Path) -> str:
        return source_key(SourcePackage("demo", folder.as_uri()))

    one = write_tree(tmp_path / "one", {"a.py": b"1", "b.py": b"2"})
    two = write_tree(tmp_path / "two", {"b.py": b"2", "a.py": b"1"})
    write_tree(two / "__pycache__", {"a.pyc": b"x"})
    assert key(one) == key(two)
    seen = {key(one)}
    (two / "b.py").chmod(0o755)
    seen.add(key(two))
    write_tree(two, {"a.py": b"12", "b.py": b""})
    seen.add(key(two))
    (two / "link").symlink_to("/nowhere")
    seen.add(key(two))
    (two / "folder").symlink_to(one)
    seen.add(key(two))
    assert len(seen) == 5


async def test_a_store_gives_back_only_what_is_whole(tmp_path: Path, store: FolderWheelStore) -> None:
    """A damaged file counts as absent, the first wheel of a key stays, and a name that is no wheel's is refused."""
    first, second = tmp_path / "demo-1.0-py3-none-any.whl", tmp_path / "demo-2.0-py3-none-any.whl"
    first.write_bytes(b"one")
    second.write_bytes(b"two")
    assert await store.find("key") is None and await store.fetch("0" * 64) is None
    kept = await store.keep("key", first)
    assert await store.keep("key", second) == kept == await store.find("key")
    path = await store.fetch(kept.sha256)
    assert path is not None and path.read_bytes() == b"one"
    path.write_bytes(b"bad")
    assert await store.fetch(kept.sha256) is None and await store.find("key") is None
    assert (await store.keep("key", second)).version == "2.0"
    (tmp_path / "x.whl").write_bytes(b"")
    with pytest.raises(PackageError, match="no wheel file name"):
        await store.keep("other", tmp_path / "x.whl")

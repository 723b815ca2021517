"""What a Docker build takes: opened from a definition, hashed, packed; git by its own server."""

import io
import os
import socket
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefect_environments.core.build.docker.checkout import GitContext
from prefect_environments.core.build.docker.inputs import (
    BuildInputs,
    inputs_digest,
    open_inputs,
    pack_context,
    stage_context,
)
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import BuildError, SecretError, SpecificationError
from prefect_environments.core.lock.target import Platform
from tests.support.session import Session, need, wait_for

TEXT = "ARG V=1\nFROM base.example.com/a:$V AS first\nFROM b:2\nCOPY --from=first / /x\n"
PLANTED = "s3cr3t-9d1f0c"


def definition(**fields: Any) -> EnvironmentDefinition:
    return EnvironmentDefinition(name="demo", **fields)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "context"
    (made / "docker").mkdir(parents=True)
    (made / "docker" / "Dockerfile").write_bytes(TEXT.replace("\n", "\r\n").encode("utf-8-sig"))
    (made / "run.sh").write_text("echo 1\n")
    (made / "run.sh").chmod(0o750)
    (made / "link").symlink_to("run.sh")
    return made


async def opened(scratch: Path, **fields: Any) -> BuildInputs:
    async with open_inputs(definition(**fields), scratch) as inputs:
        return inputs


async def test_text_is_a_build_with_an_empty_context(tmp_path: Path) -> None:
    inputs = await opened(
        tmp_path,
        dockerfile=TEXT,
        build_arguments={"V": "7"},
        build_target="First",
        build_secrets={"token": "secret:feed"},
        platform="linux/arm64",
    )
    assert inputs == BuildInputs(
        TEXT, None, "Dockerfile", {"V": "7"}, "First", {"token": "secret:feed"}, Platform("arm64")
    )
    assert inputs.images() == ("base.example.com/a:7",)


async def test_a_folder_brings_its_dockerfile(folder: Path, tmp_path: Path) -> None:
    inputs = await opened(tmp_path, build_context=str(folder), dockerfile_path="./docker/Dockerfile")
    assert inputs == BuildInputs(TEXT, folder, "docker/Dockerfile")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "neither": ({}, "has neither a Dockerfile nor a build context"),
    "no FROM": ({"dockerfile": "RUN x\n"}, "before the first FROM"),
    "no such stage": ({"dockerfile": TEXT, "build_target": "last"}, "its named stages: first"),
    "no such folder": ({"build_context": "nowhere"}, "no folder is at the build context 'nowhere'"),
    "no Dockerfile": ({"build_context": "CONTEXT"}, "has no Dockerfile; name its Dockerfile in dockerfile_path"),
    "no such Dockerfile": ({"build_context": "CONTEXT", "dockerfile_path": "docker"}, "has no docker;"),
    "a path out": ({"build_context": "CONTEXT", "dockerfile_path": "../D"}, "without '..'"),
    "an absolute path": ({"build_context": "CONTEXT", "dockerfile_path": "/D"}, "without a slash at its start"),
    "a link out": ({"build_context": "CONTEXT", "dockerfile_path": "out"}, "is a link out of it"),
    "an argument's name": ({"dockerfile": TEXT, "build_arguments": {"A-B": "1"}}, "'A-B' is not allowed"),
    "a secret's id": ({"dockerfile": TEXT, "build_secrets": {"a,src=/x": "secret:x"}}, "id 'a,src=/x' is not allowed"),
    "a branch": ({"build_context": "https://git.example.com/a.git#main"}, "a branch or tag moves"),
}


@pytest.mark.parametrize(("fields", "reason"), REFUSED.values(), ids=REFUSED)
async def test_what_is_wrong_is_refused_before_any_work(
    folder: Path, fields: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    (folder.parent / "outside").write_text(TEXT)
    (folder / "out").symlink_to("../outside")
    if fields.get("build_context") == "CONTEXT":
        fields = {**fields, "build_context": str(folder)}
    with pytest.raises(SpecificationError) as refused:
        await opened(folder.parent / "scratch", **fields)
    assert reason in str(refused.value)
    assert not (folder.parent / "scratch").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PIP_TOKEN", PLANTED),
        ("PIP_INDEX_URL", f"https://user:{PLANTED}@pip.example.com/simple"),
        ("GITHUB", f"ghp_{'a1' * 18}"),
        ("FEED", "secret:feed"),
    ],
)
def test_a_secret_as_a_build_argument_is_refused_and_not_shown(name: str, value: str) -> None:
    with pytest.raises(SpecificationError, match="build_secrets") as refused:
        BuildInputs(TEXT, arguments={name: value})
    assert value not in str(refused.value) and PLANTED not in str(refused.value)


def test_a_literal_build_secret_is_refused_and_not_shown() -> None:
    with pytest.raises(SecretError) as refused:
        BuildInputs(TEXT, secrets={"token": PLANTED})
    assert PLANTED not in str(refused.value)


# -- digest -------------------------------------------------------------------------------------------------------


async def digest_of(image: str) -> str:
    return f"sha256:{image}"


async def moved(image: str) -> str:
    return f"sha256:{image}{'-moved' if image == 'b:2' else ''}"


def inputs_of(folder: Path | None, **fields: Any) -> BuildInputs:
    return BuildInputs(TEXT, folder, "docker/Dockerfile", **fields)


CHANGES: dict[str, dict[str, Any]] = {
    "arguments": {"arguments": {"V": "1"}},
    "target": {"target": "first"},
    "secrets": {"secrets": {"token": "secret:x"}},
    "platform": {"platform": Platform("arm64")},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_everything_that_a_build_takes_is_in_its_digest(folder: Path, change: dict[str, Any]) -> None:
    before = await inputs_digest(inputs_of(folder), digest_of)
    assert await inputs_digest(inputs_of(folder, **change), digest_of) != before


async def test_a_moved_base_tag_a_comment_and_a_file_are_another_digest(folder: Path) -> None:
    before = await inputs_digest(inputs_of(folder), digest_of)
    assert before == await inputs_digest(inputs_of(folder), digest_of)
    others = {
        await inputs_digest(inputs_of(folder), moved),
        await inputs_digest(inputs_of(None), digest_of),
        await inputs_digest(BuildInputs(f"{TEXT}# more\n", folder, "docker/Dockerfile"), digest_of),
    }
    (folder / "run.sh").write_text("echo 2\n")
    others.add(await inputs_digest(inputs_of(folder), digest_of))
    assert len(others | {before}) == 5


async def test_which_secret_an_id_stands_for_does_not_count() -> None:
    digests = {
        await inputs_digest(inputs_of(None, secrets={"token": reference}), digest_of)
        for reference in ("secret:one", "secret:two")
    }
    assert len(digests) == 1


async def test_only_images_that_the_target_needs_are_asked_for() -> None:
    asked = []

    async def ask(image: str) -> str:
        asked.append(image)
        return "sha256:0"

    await inputs_digest(inputs_of(None, target="first"), ask)
    assert asked == ["base.example.com/a:1"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# -- packing ------------------------------------------------------------------------------------------------------


def packed(inputs: BuildInputs) -> bytes:
    out = io.BytesIO()
    pack_context(inputs, out)
    return out.getvalue()


def members(content: bytes) -> dict[str, tuple[int, str]]:
    """path -> mode and content (or a link's target)."""
    found = {}
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for member in archive:
            assert (member.uid, member.gid, member.mtime) == (0, 0, 1)
            file = archive.extractfile(member) if member.isfile() else None
            found[member.name] = (member.mode, file.read().decode("utf-8-sig") if file else member.linkname)
    return found


def test_a_packed_context_depends_on_its_content_only(folder: Path) -> None:
    first = packed(inputs_of(folder))
    os.utime(folder / "run.sh", (5, 5))
    (folder / "run.sh").chmod(0o700)
    (folder / "docker").chmod(0o700)
    assert packed(inputs_of(folder)) == first
    assert members(first) == {
        "docker": (0o755, ""),
        "docker/Dockerfile": (0o644, TEXT.replace("\n", "\r\n")),
        "link": (0o777, "run.sh"),
        "run.sh": (0o755, "echo 1\n"),
    }


def test_an_ignored_dockerfile_is_packed_for_the_builder_and_hidden_from_its_steps(folder: Path) -> None:
    (folder / ".dockerignore").write_text("*\n!run.sh\n")
    assert members(packed(inputs_of(folder))) == {
        "run.sh": (0o755, "echo 1\n"),
        "docker/Dockerfile": (0o644, TEXT),
        ".dockerignore": (0o644, ".dockerignore\ndocker/Dockerfile\n"),
    }
    assert set(members(packed(BuildInputs(TEXT)))) == {"Dockerfile", ".dockerignore"}


def test_a_staged_context_has_the_same_files_modes_and_times_and_the_dockerfile_beside_it(folder: Path) -> None:
    (folder / ".dockerignore").write_text("docker\n")
    (folder.parent / "staged").mkdir()
    context, dockerfile = stage_context(inputs_of(folder), folder.parent / "staged")
    assert dockerfile.read_text() == TEXT
    assert names(context) == [".dockerignore", "link", "run.sh"]
    assert (context / "run.sh").stat().st_mode & 0o777 == 0o755
    assert {path.lstat().st_mtime for path in context.iterdir()} == {1.0}
    assert str((context / "link").readlink()) == "run.sh"


def test_a_file_that_changes_while_it_is_packed_is_an_error(folder: Path) -> None:
    class Out(io.BytesIO):
        def write(self, data: Any) -> int:
            with (folder / "run.sh").open("a") as file:
                file.write("more\n")
            return super().write(data)

    with pytest.raises(BuildError, match=r"run\.sh in the build context changed"):
        pack_context(inputs_of(folder), Out())


# -- git ----------------------------------------------------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (f"https://git.example.com/a/b.git#{COMMIT}", ("https://git.example.com/a/b.git", COMMIT, "")),
        (f"https://git.example.com/a#{COMMIT.upper()}:sub/dir/", ("https://git.example.com/a", COMMIT, "sub/dir")),
        (f"git@git.example.com:a/b.git#{COMMIT}", ("git@git.example.com:a/b.git", COMMIT, "")),
        (f"ssh://git@git.example.com/a#{'0' * 64}", ("ssh://git@git.example.com/a", "0" * 64, "")),
    ],
)
def test_git_contexts_are_read(text: str, parts: tuple[str, str, str]) -> None:
    assert GitContext.is_git(text)
    assert GitContext.parse(text) == GitContext(*parts)


@pytest.mark.parametrize("text", ["docker", "./a#b", "/srv/x:y", "a@b/c", "C:/x"])
def test_folders_are_not_taken_for_git(text: str) -> None:
    assert not GitContext.is_git(text)


GIT_REFUSED = {
    "no commit": ("https://git.example.com/a.git", "no full commit id"),
    "a short commit": (f"https://git.example.com/a.git#{COMMIT[:12]}", "no full commit id"),
    "a password": (f"https://u:{PLANTED}@git.example.com/a#{COMMIT}", "holds credentials"),
    "a token": (f"https://{PLANTED}@git.example.com/a#{COMMIT}", "holds credentials"),
    "a password for ssh": (f"ssh://git:{PLANTED}@git.example.com/a#{COMMIT}", "holds credentials"),
    "a token as a parameter": (f"https://git.example.com/a?access_token={PLANTED}#{COMMIT}", "holds credentials"),
    "a password with #": (f"https://u:x#{PLANTED}@git.example.com/a#{COMMIT}", "is not shown"),
    "a command": (f"ext::sh -c touch% /tmp/x#{COMMIT}", "white space"),
    "a transport": (f"ext::sh#{COMMIT}", "is not fetched"),
    "another scheme": (f"ftp://git.example.com/a#{COMMIT}", "is not fetched"),
    "an option": (f"--upload-pack=x://y#{COMMIT}", "is not fetched"),
    "an option as a host": (f"ssh://-oProxyCommand=x/a#{COMMIT}", "starts with '-'"),
    "no host": (f"https:///a#{COMMIT}", "names no host"),
    "a port": (f"https://git.example.com:{PLANTED}/a#{COMMIT}", "malformed"),
    "out of the repository": (f"https://git.example.com/a#{COMMIT}:a/../..", "leaves the repository"),
}


@pytest.mark.parametrize(("text", "reason"), GIT_REFUSED.values(), ids=GIT_REFUSED)
def test_a_git_context_that_moves_runs_or_holds_a_secret_is_refused(text: str, reason: str) -> None:
    with pytest.raises(SpecificationError) as refused:
        GitContext.parse(text)
    assert reason in str(refused.value)
    assert PLANTED not in str(refused.value)


def git(folder: Path, *words: str) -> str:
    identity = {f"GIT_{who}_{what}": "t@example.com" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    done = subprocess.run(
        ["git", "-c", "init.defaultBranch=main", "-c", "protocol.file.allow=always", *words],
        cwd=folder,
        env={**os.environ, **identity, "GIT_CONFIG_GLOBAL": os.devnull},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def commit(folder: Path, **files: str) -> str:
    """Write files, commit all there is; gives the commit's id."""
    for name, content in files.items():
        (folder / name).write_text(content)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "x")
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    need("git")
    made = tmp_path / "served" / "repository"
    (made / "sub").mkdir(parents=True)
    git(made, "init", "--quiet")
    (made / "sub" / "file").write_text("in a folder")
    return made


@pytest.fixture
def git_url(tmp_path: Path, test_session: Session) -> Iterator[str]:
    """The URL of a git server for the folder `served`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["daemon", "--reuseaddr", "--export-all", f"--base-path={tmp_path / 'served'}", "--listen=127.0.0.1"]
    process = test_session.spawn("git", *words, f"--port={port}", log=f"git-{port}.log")

    def answers() -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) == 0

    wait_for("git daemon", answers, process=process, log=test_session.log(f"git-{port}.log"))
    yield f"git://127.0.0.1:{port}/repository"
    process.terminate()
    process.wait()


async def test_an_older_commit_is_checked_out_without_git_and_removed_at_the_end(
    repository: Path, git_url: str, tmp_path: Path
) -> None:
    """The server hands out branch tips only, so that the commit takes a full fetch; no hook of ours runs."""
    wanted = commit(repository, Dockerfile=TEXT, file="old\r\n")
    commit(repository, Dockerfile="FROM newer\n", file="new")
    asked = definition(build_context=f"{git_url}#{wanted}")
    async with open_inputs(asked, tmp_path / "scratch") as inputs:
        assert inputs.context and inputs.dockerfile == TEXT
        assert names(inputs.context) == ["Dockerfile", "file", "sub"]
        assert (inputs.context / "file").read_bytes() == b"old\r\n"
        from_git = await inputs_digest(inputs, digest_of)
    assert not any((tmp_path / "scratch").iterdir())
    git(repository, "checkout", "--quiet", wanted)
    (repository / ".git").rename(tmp_path / "git")
    assert await inputs_digest(BuildInputs(TEXT, repository), digest_of) == from_git


async def test_an_older_commit_comes_whatever_the_worker_calls_its_first_branch(
    repository: Path, git_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server of the old protocol hands out tips only; git fetches into no branch that it thinks is checked out."""
    settings = tmp_path / "gitconfig"
    settings.write_text("[init]\n\tdefaultBranch = main\n[protocol]\n\tversion = 0\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    wanted = commit(repository, Dockerfile=TEXT)
    commit(repository, Dockerfile="FROM newer\n")
    assert git(repository, "branch", "--show-current") == "main"
    async with open_inputs(definition(build_context=f"{git_url}#{wanted}"), tmp_path / "scratch") as inputs:
        assert inputs.dockerfile == TEXT


async def test_a_folder_of_a_repository_is_the_context(repository: Path, tmp_path: Path) -> None:
    (repository / "sub" / "Dockerfile").write_text(TEXT)
    (repository / "link").symlink_to("..")
    wanted = commit(repository)
    url = f"file://{repository}#{wanted}"
    async with open_inputs(definition(build_context=f"{url}:sub"), tmp_path / "scratch") as inputs:
        assert inputs.context and names(inputs.context) == ["Dockerfile", "file"]
    for wrong in ("none", "link", "sub/file"):
        with pytest.raises(SpecificationError, match="has no folder"):
            await opened(tmp_path / "scratch", build_context=f"{url}:{wrong}")
    assert not any((tmp_path / "scratch").iterdir())


async def test_submodules_are_part_of_a_commit_over_the_network_only(
    repository: Path, git_url: str, tmp_path: Path
) -> None:
    other = repository.parent / "other"
    other.mkdir()
    git(other, "init", "--quiet")
    commit(other, inner="of the submodule")
    commit(repository, Dockerfile=TEXT)
    git(repository, "submodule", "--quiet", "add", "../other", "module")
    git(repository, "config", "--file=.gitmodules", "submodule.module.url", "../other")
    wanted = commit(repository)
    async with open_inputs(definition(build_context=f"{git_url}#{wanted}"), tmp_path / "scratch") as inputs:
        assert inputs.context and (inputs.context / "module" / "inner").read_text() == "of the submodule"
        assert names(inputs.context / "module") == ["inner"]
    git(repository, "config", "--file=.gitmodules", "submodule.module.url", str(other))
    local = commit(repository)
    with pytest.raises(BuildError, match=r"git submodule of .* failed: .*not allowed"):
        await opened(tmp_path / "scratch", build_context=f"{git_url}#{local}")


async def test_hooks_and_filters_of_the_worker_change_nothing(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooks = tmp_path / "template" / "hooks"
    hooks.mkdir(parents=True)
    (hooks / "post-checkout").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (hooks / "post-checkout").chmod(0o755)
    settings = f"[init]\ntemplateDir={hooks.parent}\n[core]\nhooksPath={hooks}\nautocrlf=true\n"
    (tmp_path / "gitconfig").write_text(settings)
    wanted = commit(repository, Dockerfile=TEXT, file="a\nb\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
    asked = definition(build_context=f"file://{repository}#{wanted}")
    async with open_inputs(asked, tmp_path / "scratch") as inputs:
        assert inputs.context and (inputs.context / "file").read_bytes() == b"a\nb\n"
    assert not (tmp_path / "ran").exists()


async def test_a_commit_that_is_not_there_and_a_tag_object_are_errors(repository: Path, tmp_path: Path) -> None:
    commit(repository, Dockerfile=TEXT)
    git(repository, "tag", "--annotate", "--message", "x", "v1")
    tag = git(repository, "rev-parse", "v1")
    url = f"file://{repository}"
    with pytest.raises(BuildError, match="has no commit"):
        await opened(tmp_path / "scratch", build_context=f"{url}#{COMMIT}")
    with pytest.raises(BuildError, match="is a tag, not a commit"):
        await opened(tmp_path / "scratch", build_context=f"{url}#{tag}")
    with pytest.raises(BuildError, match=r"git fetch of .* failed"):
        await opened(tmp_path / "scratch", build_context=f"file://{tmp_path}/nothing#{COMMIT}")

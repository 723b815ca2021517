"""Which Python and which libc a base image has, read from its layers as engines would stack them."""

import io
import lzma
import tarfile
from pathlib import Path

import pytest

from prefect_environments.core.build.base import BaseImage, load_base
from prefect_environments.core.build.inspect import check_interpreter, inspect_base
from prefect_environments.core.errors import BaseImageError, ImageError
from prefect_environments.core.lock.target import Platform, Target
from prefect_environments.core.oci import descriptor as types
from prefect_environments.core.oci.layout import Layout
from tests.core.build.parts import put_image, tar_of
from tests.support.base import BaseLayout

Entries = dict[str, bytes | str | tuple[str, str] | None]

GLIBC = b"\x7fELF..\0GNU C Library (Debian GLIBC 2.36-9+deb12u4) stable release version 2.36.\nCopyright"
OLD_GLIBC = GLIBC.replace(b"2.36", b"2.31")
MUSL = b"\x7fELF..\0" + b"1.2.4\0" + b"musl libc\0"
LIBC: Entries = {"usr/lib/x86_64-linux-gnu/libc.so.6": GLIBC}
SHARED = b"\x7fELF\0/lib64/ld-linux-x86-64.so.2\0"
OFFICIAL = ["PATH=/usr/local/bin:/usr/bin", "PYTHON_VERSION=3.12.7"]


def python(version: str, *, loader: str = "/lib64/ld-linux-x86-64.so.2", before: bytes = b"") -> bytes:
    """A binary with the texts that a real interpreter has."""
    return b"\x7fELF\0" + loader.encode() + b"\0" + before + version.encode() + b"\0tail"


async def _find(tmp_path: Path, layers: list[Entries], environment: list[str] | None = None) -> Target:
    base = await put_image(tmp_path / "layout", [tar_of(layer) for layer in layers], environment or [])
    target = await inspect_base(base, Platform(), tmp_path / "scratch")
    check_interpreter(base, target)
    return target


DEBIAN: Entries = {
    "usr/bin/python3": "python3.11",
    "usr/bin/python3.11": python("3.11.2", before=b"3.40.1\0"),
    "bin": "usr/bin",
    "lib": "usr/lib",
    **LIBC,
}


async def test_debian_s_python_is_behind_a_link(tmp_path: Path) -> None:
    assert await _find(tmp_path, [DEBIAN]) == Target("3.11.2", "/usr/bin/python3.11", "glibc", "2.36")


async def test_entries_may_start_with_a_dot(tmp_path: Path) -> None:
    dotted: Entries = {f"./{path}": content for path, content in DEBIAN.items()}
    assert (await _find(tmp_path, [dotted])).interpreter == "/usr/bin/python3.11"


@pytest.mark.parametrize("path", ["/bin", "/bin:/usr/bin", "/usr/bin", "/nowhere:/bin"])
async def test_a_merged_usr_gives_the_real_place(path: str, tmp_path: Path) -> None:
    assert (await _find(tmp_path, [DEBIAN], [f"PATH={path}"])).interpreter == "/usr/bin/python3.11"


async def test_the_official_image_s_version_is_believed_and_its_binary_looked_at(tmp_path: Path) -> None:
    layers: list[Entries] = [LIBC, {"usr/local/bin/python3.12": SHARED}]
    assert await _find(tmp_path, layers, OFFICIAL) == Target("3.12.7", "/usr/local/bin/python3.12", "glibc", "2.36")


async def test_a_declared_version_without_its_binary_is_not_believed(tmp_path: Path) -> None:
    """Images that set the variable for a build of their own have their Python elsewhere."""
    assert await _find(tmp_path, [DEBIAN], OFFICIAL) == Target("3.11.2", "/usr/bin/python3.11", "glibc", "2.36")


async def test_a_shared_library_tells_the_version_of_a_small_binary(tmp_path: Path) -> None:
    files: Entries = {
        "usr/local/bin/python3": "python3.12",
        "usr/local/bin/python3.12": SHARED,
        "usr/local/lib/libpython3.12.so.1.0": b"\0" + b"3.45.1\0" + b"3.12.7\0",
        "usr/local/lib/libpython3.10.so.1.0": b"\0" + b"3.10.1\0",
    }
    assert (await _find(tmp_path, [LIBC, files])).python == "3.12.7"


async def test_conda_s_python_comes_first_on_its_path(tmp_path: Path) -> None:
    conda: Entries = {
        "opt/conda/bin/python": "python3.10",
        "opt/conda/bin/python3": "python3.10",
        "opt/conda/bin/python3.10": python("3.10.14"),
        "opt/conda/x86_64-conda-linux-gnu/sysroot/lib64/libc.so.6": GLIBC.replace(b"2.36", b"2.17"),
    }
    target = await _find(tmp_path, [DEBIAN, conda], ["PATH=/opt/conda/bin:/usr/bin"])
    assert target == Target("3.10.14", "/opt/conda/bin/python3.10", "glibc", "2.36")


async def test_a_python_with_only_its_minor_in_its_name_is_found(tmp_path: Path) -> None:
    files: Entries = {"usr/bin/python3.9": python("3.9.2"), "usr/bin/python3.11": python("3.11.2"), **LIBC}
    assert (await _find(tmp_path, [files])).python == "3.11.2"


async def test_a_deleted_python_is_not_there(tmp_path: Path) -> None:
    deleted: Entries = {"usr/bin/.wh.python3": b"", "usr/bin/.wh.python3.11": b""}
    with pytest.raises(BaseImageError, match="no Python 3 on its PATH"):
        await _find(tmp_path, [DEBIAN, deleted])


@pytest.mark.parametrize("marker", ["usr/bin/.wh..wh..opq", "usr/.wh.bin", ".wh.usr", ".wh..wh..opq"])
async def test_an_upper_layer_that_empties_a_folder_hides_what_was_in_it(marker: str, tmp_path: Path) -> None:
    top: Entries = {marker: b"", "usr/local/bin/python3": python("3.12.1"), "lib64/libc.so.6": OLD_GLIBC}
    target = await _find(tmp_path, [DEBIAN, top], ["PATH=/usr/bin:/usr/local/bin"])
    assert (target.python, target.interpreter) == ("3.12.1", "/usr/local/bin/python3")
    assert target.libc_version == "2.31"


async def test_a_whiteout_does_not_hide_what_its_own_layer_brings(tmp_path: Path) -> None:
    top: Entries = {
        "usr/bin/.wh..wh..opq": b"",
        "usr/bin/.wh.python3": b"",
        "usr/bin/python3": "python3.13",
        "usr/bin/python3.13": python("3.13.0rc2"),
    }
    assert (await _find(tmp_path, [DEBIAN, top])).python == "3.13.0"


async def test_a_file_in_the_place_of_a_folder_hides_the_folder(tmp_path: Path) -> None:
    with pytest.raises(BaseImageError, match="no Python 3"):
        await _find(tmp_path, [DEBIAN, {"usr/bin": b"a file"}])


async def test_an_upper_layer_s_link_counts(tmp_path: Path) -> None:
    top: Entries = {
        "usr/bin/python3": "/etc/alternatives/python3",
        "etc/alternatives/python3": "/opt/py/bin/python3.12",
        "opt/py/bin/python3.12": python("3.12.4"),
    }
    assert (await _find(tmp_path, [DEBIAN, top])).interpreter == "/opt/py/bin/python3.12"


async def test_links_of_folders_on_the_way_are_followed(tmp_path: Path) -> None:
    top: Entries = {
        "opt/py/current": "3.12.4",
        "usr/bin/python3": "../../opt/py/current/bin/python3",
        "opt/py/3.12.4/bin/python3": "./python3.12",
        "opt/py/3.12.4/bin/python3.12": python("3.12.4"),
    }
    assert (await _find(tmp_path, [DEBIAN, top])).interpreter == "/opt/py/3.12.4/bin/python3.12"


async def test_an_upper_layer_s_libc_replaces_the_lower_one(tmp_path: Path) -> None:
    target = await _find(tmp_path, [DEBIAN, {"usr/lib/x86_64-linux-gnu/libc.so.6": OLD_GLIBC}])
    assert target.libc_version == "2.31"


async def test_an_old_libc_behind_a_link_is_found(tmp_path: Path) -> None:
    files: Entries = {
        "lib/x86_64-linux-gnu/libc.so.6": "libc-2.31.so",
        "lib/x86_64-linux-gnu/libc-2.31.so": OLD_GLIBC,
        "usr/bin/python3": python("3.9.2"),
    }
    assert (await _find(tmp_path, [files])).libc_version == "2.31"


async def test_musl_is_found(tmp_path: Path) -> None:
    files: Entries = {
        "usr/bin/python3": python("3.12.3", loader="/lib/ld-musl-x86_64.so.1"),
        "lib/ld-musl-x86_64.so.1": MUSL,
    }
    assert await _find(tmp_path, [files]) == Target("3.12.3", "/usr/bin/python3", "musl", "1.2")


@pytest.mark.parametrize("libc", ["glibc", "musl"])
async def test_of_two_libcs_the_interpreter_s_own_counts(libc: str, tmp_path: Path) -> None:
    loader = {"glibc": "/lib64/ld-linux-x86-64.so.2", "musl": "/lib/ld-musl-x86_64.so.1"}[libc]
    interpreter: Entries = {
        "usr/local/bin/python3.12": python("3.12.7", loader=loader),
        "usr/local/bin/python3": "python3.12",
    }
    alien: Entries = {"lib/ld-musl-x86_64.so.1": MUSL}
    orders = [[interpreter, alien, LIBC], [interpreter, LIBC, alien], [LIBC, alien, interpreter]]
    for number, layers in enumerate(orders):
        for environment in (OFFICIAL, []):
            target = await _find(tmp_path / f"{number}{len(environment)}", layers, environment)
            assert target.libc == libc


async def test_a_hard_link_is_the_file_it_links_to(tmp_path: Path) -> None:
    files: Entries = {
        "usr/local/bin/python3.12": python("3.12.1"),
        "usr/local/bin/python3": ("hard", "usr/local/bin/python3.12"),
        **LIBC,
    }
    assert (await _find(tmp_path, [files])).interpreter == "/usr/local/bin/python3.12"


@pytest.mark.parametrize(
    "links",
    [
        {"usr/bin/python3": "python3"},
        {"usr/bin/python3": "python", "usr/bin/python": "/usr/bin/python3"},
        {"usr/bin": "../usr/bin"},
        {"usr": "usr/usr"},
        {"usr/bin/python3": "../../../../../../etc/python3"},
        {"usr/bin/python3": "/"},
        {"usr/bin/python3": "missing"},
    ],
)
async def test_links_that_lead_nowhere_end(links: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(BaseImageError, match="no Python 3 on its PATH"):
        await _find(tmp_path, [{**LIBC, **links}])


async def test_no_python_is_refused_with_advice(tmp_path: Path) -> None:
    with pytest.raises(
        BaseImageError, match=r"example.com/base:1 has no Python 3 on its PATH \(/x:/y\). Choose a base"
    ):
        await _find(tmp_path, [LIBC, {"usr/bin/python2": python("2.7.18")}], ["PATH=/x:/y"])


async def test_no_libc_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BaseImageError, match="neither glibc nor musl"):
        await _find(tmp_path, [{"usr/bin/python3": python("3.12.3")}])


async def _with_layer(tmp_path: Path, layer: bytes, media_type: str = types.LAYER_GZIP) -> BaseImage:
    return await put_image(tmp_path / "layout", [layer], media_type=media_type)


async def test_a_zstd_layer_is_refused_with_advice(tmp_path: Path) -> None:
    base = await _with_layer(tmp_path, b"(\xb5/\xfd", types.LAYER_ZSTD)
    with pytest.raises(BaseImageError, match=r"zstd layers.*--dest-compress-format gzip"):
        await inspect_base(base, Platform(), tmp_path / "scratch")


def _damaged() -> dict[str, bytes]:
    good, plain = tar_of(DEBIAN), tar_of(DEBIAN, mode="w")
    wrong_crc = bytearray(good)
    wrong_crc[-6] ^= 1
    return {
        "garbage": b"this is no layer at all" * 100,
        "cut short": good[: len(good) // 2],
        "wrong CRC": bytes(wrong_crc),
        "xz cut short": lzma.compress(plain)[:-20],
        "plain cut short": plain[:2000],
        "empty": b"",
    }


@pytest.mark.parametrize("kind", _damaged())
async def test_a_corrupt_layer_is_an_image_error(kind: str, tmp_path: Path) -> None:
    base = await _with_layer(tmp_path, _damaged()[kind])
    with pytest.raises(ImageError, match=r"layer sha256:\w+ of example.com/base:1 is not a tar archive"):
        await inspect_base(base, Platform(), tmp_path / "scratch")
    assert list((tmp_path / "scratch").iterdir()) == []


async def test_docker_s_and_plain_layers_are_read(tmp_path: Path) -> None:
    kinds = {types.DOCKER_LAYER_GZIP: "w:gz", types.LAYER_TAR: "w", types.DOCKER_LAYER_TAR: "w"}
    for number, (media_type, mode) in enumerate(kinds.items()):
        base = await put_image(tmp_path / str(number), [tar_of(DEBIAN, mode=mode)], media_type=media_type)
        assert (await inspect_base(base, Platform(), tmp_path / "scratch")).python == "3.11.2"


async def test_devices_in_a_layer_are_passed_over(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, kind in (("usr/bin/python3", tarfile.CHRTYPE), ("usr/bin/python", tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(name)
            info.type = kind
            archive.addfile(info)
    base = await _with_layer(tmp_path, out.getvalue())
    with pytest.raises(BaseImageError, match="neither glibc nor musl"):
        await inspect_base(base, Platform(), tmp_path / "scratch")


async def test_the_real_base_image_s_python_and_libc_are_found(base_layout: BaseLayout, tmp_path: Path) -> None:
    base = await load_base(Layout(base_layout.folder).repository(""), "base", "example.com/base:1", Platform())
    target = await inspect_base(base, Platform(), tmp_path)
    assert target.interpreter == f"/usr/bin/python{target.python_minor}"
    assert target.python.count(".") == 2 and target.libc == "glibc"
    assert tuple(map(int, target.libc_version.split("."))) >= (2, 31)


async def test_the_real_base_image_without_python_is_refused(
    base_layout_without_python: BaseLayout, tmp_path: Path
) -> None:
    repository = Layout(base_layout_without_python.folder).repository("")
    base = await load_base(repository, "base", "example.com/base:1", Platform())
    with pytest.raises(BaseImageError, match="no Python 3 on its PATH"):
        check_interpreter(base, await inspect_base(base, Platform(), tmp_path))

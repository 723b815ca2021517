"""Manifests, indexes and configs from anybody: read as they are meant, or refused with an error of our tree."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_environments.core.build.base import KnownBases, load_base
from prefect_environments.core.errors import BaseImageError, ImageError, NotFound
from prefect_environments.core.lock.model import LockedBase
from prefect_environments.core.lock.target import Platform
from prefect_environments.core.oci import descriptor as types
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.descriptor import Descriptor
from prefect_environments.core.oci.image import ImageConfig, ImageManifest, oci_layer, select_platform
from prefect_environments.core.oci.layout import LayoutRepository
from tests.core.oci.parts import LAYERS, config_of, manifest_of, put_image

DIGEST = digests.of(b"x")
ONE = {"mediaType": types.IMAGE_MANIFEST, "digest": DIGEST, "size": 1}

_KEYS = (
    *("schemaVersion", "config", "layers", "manifests", "annotations", "subject", "artifactType", "mediaType"),
    *("digest", "size", "platform", "rootfs", "diff_ids", "Env", "os", "architecture", "history"),
)
_JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False),
        st.text(max_size=5),
        st.sampled_from([DIGEST, types.IMAGE_MANIFEST, types.LAYER_GZIP, "linux", "amd64", 2, ONE]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.text(max_size=3), st.sampled_from(_KEYS)), inner, max_size=5),
    ),
    max_leaves=25,
)
_MANIFESTS = st.fixed_dictionaries(
    {"schemaVersion": st.just(2), "config": st.one_of(st.just(ONE), _JSON)},
    optional={"layers": st.one_of(_JSON, st.lists(st.just(ONE), max_size=3)), "annotations": _JSON, "subject": _JSON},
)
_CONFIGS = st.fixed_dictionaries({"rootfs": st.fixed_dictionaries({"diff_ids": _JSON})}, optional={"config": _JSON})


@settings(deadline=None)
@given(st.one_of(_JSON, _MANIFESTS))
def test_any_json_is_a_manifest_that_is_written_back_or_an_image_error(data: Any) -> None:
    try:
        read = ImageManifest.from_bytes(json.dumps(data).encode())
    except ImageError:
        return
    again = ImageManifest.from_bytes(read.to_bytes())
    assert again == read and again.to_bytes() == read.to_bytes()


@settings(deadline=None)
@given(st.one_of(_JSON, _CONFIGS))
def test_any_json_is_a_config_that_can_be_used_or_an_image_error(data: Any) -> None:
    try:
        read = ImageConfig.from_bytes(json.dumps(data).encode())
    except ImageError:
        return
    assert len(read.diff_ids) == len(data["rootfs"]["diff_ids"])
    assert all(isinstance(value, str) for value in (*read.environment, *read.environment.values(), *read.platform))


@settings(deadline=None)
@given(st.one_of(_JSON, st.fixed_dictionaries({"manifests": st.lists(st.one_of(st.just(ONE), _JSON), max_size=3)})))
def test_any_json_is_an_index_or_an_image_error(data: Any) -> None:
    try:
        found = select_platform(json.dumps(data).encode(), Platform(), "example.com/base")
    except ImageError:
        return
    assert found.digest.startswith("sha")


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_no_manifest_but_an_image_error(content: bytes) -> None:
    with pytest.raises(ImageError):
        ImageManifest.from_bytes(content)


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"schemaVersion": ' + b"9" * 5000 + b"}",
        b'{"a": NaN}',
        b"\xff\xfe{}",
        b"",
        b"[]",
        b'"text"',
        b'{"schemaVersion": 1, "config": {}}',
        b'{"schemaVersion": 2, "layers": []}',
        manifest_of([LAYERS[0].descriptor] * 1001, b"{}"),
        manifest_of([], b"{}", annotations={"a": 1}),
        manifest_of([], b"{}", replaced={"mediaType": "x", "digest": "md5:00", "size": 1}),
        manifest_of([], b"{}", replaced={"mediaType": "x", "digest": DIGEST, "size": -1}),
        manifest_of([], b"{}", replaced={"mediaType": "x", "digest": DIGEST, "size": True}),
    ],
)
def test_odd_manifests_are_refused(content: bytes) -> None:
    with pytest.raises(ImageError):
        ImageManifest.from_bytes(content)


def test_environment_s_last_value_wins_as_in_engines() -> None:
    config = ImageConfig.from_bytes(json.dumps(config_of([], config={"Env": ["A=1", "B", "A=2=3"]})).encode())
    assert config.environment == {"A": "2=3", "B": ""}


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (types.DOCKER_LAYER_GZIP, types.LAYER_GZIP),
        (types.DOCKER_LAYER_TAR, types.LAYER_TAR),
        (types.LAYER_GZIP, types.LAYER_GZIP),
        (types.LAYER_ZSTD, types.LAYER_ZSTD),
    ],
)
def test_a_docker_layer_gets_oci_s_media_type_and_keeps_its_bytes(given: str, kept: str) -> None:
    layer = Descriptor(given, DIGEST, 7, {"note": "x"}, "type", {"os": "linux"})
    assert oci_layer(layer) == Descriptor(kept, DIGEST, 7)


def test_a_foreign_layer_is_refused() -> None:
    with pytest.raises(BaseImageError, match=r"rootfs\.foreign"):
        oci_layer(Descriptor("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", DIGEST, 1))


def _index(*entries: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"schemaVersion": 2, "mediaType": types.IMAGE_INDEX, "manifests": entries, **more}).encode()


def _entry(os: str, architecture: str, content: bytes = b"x", media_type: str = types.IMAGE_MANIFEST) -> dict[str, Any]:
    entry = Descriptor(media_type, digests.of(content), len(content)).to_json()
    return entry | {"platform": {"os": os, "architecture": architecture}}


def test_the_platform_s_image_is_chosen_and_attestations_are_not() -> None:
    index = _index(_entry("unknown", "unknown", b"a"), _entry("linux", "arm64", b"b"), _entry("linux", "amd64", b"c"))
    assert select_platform(index, Platform("arm64"), "base").digest == digests.of(b"b")
    assert select_platform(index, Platform("amd64"), "base").digest == digests.of(b"c")


def test_a_missing_platform_is_refused_with_those_that_there_are() -> None:
    index = _index(_entry("windows", "amd64"), _entry("linux", "s390x"))
    with pytest.raises(BaseImageError, match=r"base has no image for linux/amd64; it has linux/s390x, windows/amd64"):
        select_platform(index, Platform(), "base")
    with pytest.raises(BaseImageError, match="it has no platforms"):
        select_platform(_index(), Platform(), "base")


async def _nested(folder: Path, depth: int, *, platform: bool = True, media_type: bool = True) -> LayoutRepository:
    """An image below `depth` indexes."""
    repository = await put_image(folder)
    content, kind = (await repository.get_manifest("latest")).content, types.IMAGE_MANIFEST
    for _ in range(depth):
        entry = _entry("linux", "amd64", content, kind)
        if not platform:
            del entry["platform"]
        data = json.loads(_index(entry))
        if not media_type:
            del data["mediaType"]
        content, kind = json.dumps(data).encode(), types.IMAGE_INDEX
        await repository.put_manifest(content, kind, tag="nested")
    return repository


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("platform", [True, False])
@pytest.mark.parametrize("media_type", [True, False])
async def test_an_index_of_indexes_leads_to_its_image(
    depth: int, platform: bool, media_type: bool, tmp_path: Path
) -> None:
    """Both `mediaType` of an index and `platform` of an only entry are optional (image-index.md)."""
    repository = await _nested(tmp_path, depth, platform=platform, media_type=media_type)
    base = await load_base(repository, "nested", "example.com/base", Platform())
    assert base.locked.digest == (await repository.get_manifest("latest")).descriptor.digest
    assert len(base.manifest.layers) == 2


async def test_indexes_too_deep_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="index of indexes, more than 3 deep"):
        await load_base(await _nested(tmp_path, 4), "nested", "example.com/base", Platform())


async def test_an_image_for_another_platform_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BaseImageError, match=r"is for linux/amd64, not for linux/arm64"):
        await load_base(await put_image(tmp_path), "latest", "example.com/base", Platform("arm64"))


async def test_a_base_that_does_not_exist_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"the base image example.com/base does not exist"):
        await load_base(await put_image(tmp_path), "other", "example.com/base", Platform())


async def test_a_base_with_a_diff_id_too_many_is_refused(tmp_path: Path) -> None:
    diff_ids = [DIGEST, *(layer.diff_id for layer in LAYERS)]
    config = config_of(LAYERS, rootfs={"type": "layers", "diff_ids": diff_ids})
    with pytest.raises(ImageError, match="lists 2 layers and 3 diff ids"):
        await load_base(await put_image(tmp_path, config=config), "latest", "example.com/base", Platform())


async def test_a_base_that_was_read_is_not_read_again_by_its_digest_and_is_still_checked(tmp_path: Path) -> None:
    repository, known = await put_image(tmp_path), KnownBases()
    first = await load_base(repository, "latest", "example.com/base:1", Platform(), known)
    assert list(known) == [f"{repository.name}@{first.locked.digest}"]
    repository.layout.blob_path(first.locked.digest).unlink()
    again = await load_base(repository, first.locked.digest, "example.com/base:2", Platform(), known)
    assert (again.manifest, again.config) == (first.manifest, first.config)
    assert again.locked == LockedBase("example.com/base:2", first.locked.digest)
    with pytest.raises(BaseImageError, match="not for linux/arm64"):
        await load_base(repository, first.locked.digest, "example.com/base:1", Platform("arm64"), known)
    with pytest.raises(NotFound):
        await load_base(repository, first.locked.digest, "example.com/base:1", Platform())

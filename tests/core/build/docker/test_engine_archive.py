"""Saved images as engines give them: Docker's own form, an OCI layout, and what is neither."""

import gzip
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prefect_environments.core.build import deflate
from prefect_environments.core.build.catalog import Catalog
from prefect_environments.core.build.docker.archive import read_saved
from prefect_environments.core.build.docker.engine import LABEL
from prefect_environments.core.build.docker.export import Push, layer_key
from prefect_environments.core.errors import DigestMismatch, ImageError
from prefect_environments.core.lock.target import Platform
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.image import ImageConfig, ImageManifest
from prefect_environments.core.oci.layout import Layout
from prefect_environments.core.oci.validate import validate
from tests.images.parts import tool
from tests.support.base import BaseLayout
from tests.support.session import need

HERE = Platform("amd64")


def tar_of(files: Mapping[str, bytes], links: Mapping[str, str] | None = None) -> bytes:
    """A tar with these files and symbolic links, in this order."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return out.getvalue()


LAYER = tar_of({"file": b"content\n" * 1000})
BIG = tar_of({"big": bytes(range(256)) * 16384})  # 4 MiB: more than the small files that are kept unseen


def config_of(*layers: bytes, **more: Any) -> bytes:
    diff_ids = [digests.of(layer) for layer in layers]
    return json.dumps(
        {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}, **more}
    ).encode()


def docker_form(*layers: bytes, config: bytes | None = None) -> bytes:
    """What `docker save` of engines before 25 gives; a layer that comes twice is a link the second time."""
    config = config or config_of(*layers)
    names = [f"{number}/layer.tar" for number in range(len(layers))]
    first = {layer: name for name, layer in reversed(list(zip(names, layers, strict=True)))}
    files = {name: layer for layer, name in first.items()}
    links = {name: f"../{first[layer]}" for name, layer in zip(names, layers, strict=True) if first[layer] != name}
    manifest = json.dumps([{"Config": "config.json", "RepoTags": None, "Layers": names}]).encode()
    return tar_of({**files, "config.json": config, "manifest.json": manifest}, links)


def oci_form(*layers: bytes, packed: bool) -> bytes:
    """What engines from 25 on give; packed where they keep images in containerd, which adds an attestation."""
    kind = "application/vnd.oci.image."
    config = config_of(*layers)
    stored = [gzip.compress(layer, mtime=0) if packed else layer for layer in layers]
    blobs = {digests.of(blob): blob for blob in (*stored, config)}

    def described(blob: bytes, media_type: str, **more: Any) -> dict[str, Any]:
        blobs[digests.of(blob)] = blob
        return {"mediaType": media_type, "digest": digests.of(blob), "size": len(blob), **more}

    layer_type = f"{kind}layer.v1.tar{'+gzip' if packed else ''}"
    parts = {"config": described(config, f"{kind}config.v1+json")}
    manifest = {"schemaVersion": 2, **parts, "layers": [described(blob, layer_type) for blob in stored]}
    listed = [described(json.dumps(manifest).encode(), f"{kind}manifest.v1+json")]
    if packed:
        listed[0]["platform"] = {"os": "linux", "architecture": "amd64"}
        unknown = {"platform": {"os": "unknown", "architecture": "unknown"}}
        listed.append(described(json.dumps(manifest | {"layers": []}).encode(), f"{kind}manifest.v1+json", **unknown))
        nested = json.dumps({"schemaVersion": 2, "manifests": listed}).encode()
        listed = [described(nested, f"{kind}index.v1+json")]
    index = json.dumps({"schemaVersion": 2, "manifests": listed}).encode()
    files = {f"blobs/sha256/{digests.hex_of(digest)}": blob for digest, blob in blobs.items()}
    return tar_of({**files, "oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "index.json": index})


def chunks(content: bytes, size: int = 10_007) -> Iterator[bytes]:
    return (content[start : start + size] for start in range(0, len(content), size))


FORMS: dict[str, Callable[..., bytes]] = {
    "docker": docker_form,
    "oci": lambda *layers: oci_form(*layers, packed=False),
    "containerd": lambda *layers: oci_form(*layers, packed=True),
}


@pytest.mark.parametrize("form", FORMS)
async def test_every_form_becomes_the_same_sound_image(form: str, tmp_path: Path) -> None:
    """Layers, one of them twice, come in order with their bytes; stored and read back the image is sound."""
    (tmp_path / "saved").mkdir()
    saved = read_saved(chunks(FORMS[form](LAYER, BIG, LAYER)), tmp_path / "saved", HERE, lambda _: True)
    assert saved.config == config_of(LAYER, BIG, LAYER)
    repository = Layout(tmp_path / "layout").repository("built")
    pushed = await Push(repository, tmp_path / "scratch").store(saved, {}, "latest")
    manifest = await validate(repository, pushed.digest, tmp_path / "scratch")
    assert manifest.layers[0] == manifest.layers[2]
    unpacked = [gzip.decompress(repository.layout.blob_path(x.digest).read_bytes()) for x in manifest.layers]
    assert unpacked == [LAYER, BIG, LAYER]


async def test_a_plain_layer_is_compressed_to_the_same_bytes_always(tmp_path: Path) -> None:
    """Members of 1 MiB by the pinned codec: the digest depends on the tar alone."""
    (tmp_path / "saved").mkdir()
    saved = read_saved(chunks(docker_form(BIG)), tmp_path / "saved", HERE, lambda _: True)
    repository = Layout(tmp_path / "layout").repository("built")
    pushed = await Push(repository, tmp_path / "scratch").store(saved, {}, None)
    manifest = ImageManifest.from_bytes((await repository.get_manifest(pushed.digest)).content)
    wanted = b"".join(deflate.member(BIG[start : start + 2**20]) for start in range(0, len(BIG), 2**20))
    assert repository.layout.blob_path(manifest.layers[0].digest).read_bytes() == wanted


async def test_a_layer_that_was_sent_is_found_by_its_diff_id(tmp_path: Path) -> None:
    """By the layers repository, in another repository of the store; without a file of it, nothing else is needed."""
    (tmp_path / "saved").mkdir()
    layout = Layout(tmp_path / "layout")
    catalog = Catalog(layout.repository("team-layers"))
    saved = read_saved(chunks(docker_form(BIG, LAYER)), tmp_path / "saved", HERE, lambda _: True)
    first = await Push(layout.repository("one"), tmp_path / "scratch", catalog).store(saved, {}, None)
    other = Push(layout.repository("two"), tmp_path / "scratch", catalog)
    found = await other.find([digests.of(BIG), digests.of(LAYER), digests.of(b"absent")])
    assert found.keys() == {digests.of(BIG), digests.of(LAYER)}
    (tmp_path / "again").mkdir()
    without = read_saved(chunks(docker_form(BIG, LAYER)), tmp_path / "again", HERE, lambda _: False)
    assert [layer.path is None for layer in without.layers] == [True, False]  # a small one is no burden
    assert await other.store(without, found, None) == first
    assert layer_key(digests.of(BIG)) != layer_key(digests.of(LAYER))


def test_unwanted_layers_of_a_layout_are_not_unpacked(tmp_path: Path) -> None:
    """Their names say what they are."""
    saved = read_saved(
        chunks(oci_form(LAYER, BIG, packed=False)), tmp_path, HERE, lambda digest: digest != digests.of(BIG)
    )
    assert [layer.path is None for layer in saved.layers] == [False, True]


async def test_a_config_loses_what_names_its_build(tmp_path: Path) -> None:
    """Our label, the step that set it, the container it was made in; the user's stay."""
    history = [
        {"created_by": "ADD file"},
        {"created_by": f"/bin/sh -c #(nop)  LABEL {LABEL}=1-abc", "empty_layer": True},
        {"created_by": "/bin/sh -c #(nop)  ENV A=1", "empty_layer": True},
    ]
    settings = {"Labels": {LABEL: "1-abc", "kept": "yes"}, "Env": ["A=1"]}
    config = config_of(LAYER, config=settings, history=history, container="abc", docker_version="20", created="now")
    saved = read_saved(chunks(docker_form(LAYER, config=config)), tmp_path, HERE, lambda _: True)
    repository = Layout(tmp_path / "layout").repository("built")
    pushed = await Push(repository, tmp_path / "scratch").store(saved, {}, None)
    manifest = ImageManifest.from_bytes((await repository.get_manifest(pushed.digest)).content)
    found = ImageConfig.from_bytes(repository.layout.blob_path(manifest.config.digest).read_bytes())
    assert found.settings == {"Labels": {"kept": "yes"}, "Env": ["A=1"]}
    assert found.data["history"] == [history[0], history[2]]
    assert found.data.keys() == {"architecture", "os", "rootfs", "config", "history", "created"}


async def test_a_layer_that_is_not_what_the_config_says_is_refused(tmp_path: Path) -> None:
    """Nothing is stored of it."""
    (tmp_path / "saved").mkdir()
    saved = read_saved(chunks(docker_form(LAYER, config=config_of(BIG))), tmp_path / "saved", HERE, lambda _: True)
    repository = Layout(tmp_path / "layout").repository("built")
    with pytest.raises(DigestMismatch, match="gave a layer of"):
        await Push(repository, tmp_path / "scratch").store(saved, {}, "latest")
    assert await repository.find_manifest("latest") is None


async def test_a_base_with_an_odd_tar_is_pushed_as_the_engine_has_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Other builders write a path twice; engines run such images. A packed layer of a wrong diff id is refused."""
    odd = LAYER.rstrip(b"\0") + bytes(-len(LAYER.rstrip(b"\0")) % 512) + LAYER
    for form, content in (("plain", docker_form(odd)), ("packed", oci_form(odd, packed=True))):
        (tmp_path / form).mkdir()
        saved = read_saved(chunks(content), tmp_path / form, HERE, lambda _: True)
        repository = Layout(tmp_path / "layout").repository(form)
        assert await Push(repository, tmp_path / "scratch").store(saved, {}, "latest")
    assert "two entries 'file'" in caplog.text
    wrong = replace(saved, layers=(replace(saved.layers[0], diff_id=digests.of(BIG)),))
    with pytest.raises(DigestMismatch, match="unpacks to"):
        await Push(repository, tmp_path / "scratch").store(wrong, {}, "latest")


NO_IMAGES = {
    "nothing": b"",
    "text": b"no archive at all" * 100,
    "cut": docker_form(BIG)[:1_000_000],
    "empty": tar_of({}),
    "no list": tar_of({"manifest.json": b"{}"}),
    "no layers": tar_of({"manifest.json": b'[{"Config": "c"}]'}),
    "bad names": tar_of({"manifest.json": b'[{"Config": "c", "Layers": [1]}]'}),
    "no config": tar_of({"manifest.json": b'[{"Config": "../../c", "Layers": []}]'}),
    "counts": docker_form(LAYER, config=config_of()),
    "bad index": tar_of({"index.json": b"[]"}),
    "empty index": tar_of({"index.json": b'{"manifests": []}'}),
    "circle": tar_of({}, {"manifest.json": "index.json", "index.json": "manifest.json"}),
}


@pytest.mark.parametrize("what", NO_IMAGES)
def test_what_is_no_saved_image_is_refused(what: str, tmp_path: Path) -> None:
    """With an error of ours, and no file outside of the folder."""
    folder = tmp_path / "saved"
    folder.mkdir()
    with pytest.raises(ImageError):
        read_saved(chunks(NO_IMAGES[what]), folder, HERE, lambda _: True)
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive"])
async def test_archives_of_another_tool_are_read(
    form: str, base_layout_without_python: BaseLayout, tmp_path: Path
) -> None:
    """skopeo writes both forms; they become sound images with the base's diff ids."""
    need("skopeo")
    path = tmp_path / "image.tar"
    source = base_layout_without_python.reference
    tool("skopeo", "copy", "-q", source, f"{form}:{path}:name:tag")
    config = ImageConfig.from_bytes(tool("skopeo", "inspect", "--config", source).encode())
    (tmp_path / "saved").mkdir()
    with path.open("rb") as file:
        stream = iter(lambda: file.read(2**16), b"")
        saved = read_saved(stream, tmp_path / "saved", Platform(config.platform[1]), lambda _: True)
    assert tuple(layer.diff_id for layer in saved.layers) == config.diff_ids
    repository = Layout(tmp_path / "layout").repository("built")
    pushed = await Push(repository, tmp_path / "scratch").store(saved, {}, "latest")
    await validate(repository, pushed.digest, tmp_path / "scratch")

"""Layers on top of a base: the same bytes everywhere, and nothing of the base lost but what must go."""

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest

from prefect_environments.core.errors import ImageError
from prefect_environments.core.oci import descriptor as types
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.append import EPOCH, AddedLayer, Image, append
from prefect_environments.core.oci.descriptor import Descriptor
from prefect_environments.core.oci.image import ImageConfig, ImageManifest
from prefect_environments.core.oci.validate import check_image
from tests.core.oci.parts import LAYERS, config_of, layer_of, manifest_of

TOP = layer_of({"opt/new": b"new"})
ADDED = AddedLayer(
    Descriptor(TOP.media_type, TOP.descriptor.digest, TOP.descriptor.size, {"k": "v"}), TOP.diff_id, "new 1.0"
)


def _append(environment: Mapping[str, str | None] = MappingProxyType({}), **changed: Any) -> Image:
    config = json.dumps(config_of(LAYERS, **changed)).encode()
    base = ImageManifest.from_bytes(manifest_of([layer.descriptor for layer in LAYERS], config))
    return append(base, ImageConfig.from_bytes(config), [ADDED], environment=environment, annotations={"base": "b"})


def _config(image: Image) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(image.config)
    return found


def test_layers_diff_ids_and_history_stay_in_step() -> None:
    image = _append(created="2024-05-06T07:08:09Z")
    config = _config(image)
    assert [layer.digest for layer in image.manifest.layers] == [x.descriptor.digest for x in (*LAYERS, TOP)]
    assert image.manifest.layers[-1] == ADDED.descriptor
    assert config["rootfs"] == {"type": "layers", "diff_ids": [x.diff_id for x in (*LAYERS, TOP)]}
    assert [line["created_by"] for line in config["history"]] == ["layer 0", "layer 1", "ENV", "new 1.0"]
    assert config["history"][-1]["created"] == config["created"] == "2024-05-06T07:08:09Z"
    assert check_image(image.manifest, image.config)


def test_the_image_says_what_it_is() -> None:
    image = _append()
    assert image.descriptor == Descriptor(types.IMAGE_MANIFEST, digests.of(image.content), len(image.content))
    assert image.size == len(image.config) + sum(len(x.content) for x in (*LAYERS, TOP))
    assert ImageManifest.from_bytes(image.content) == image.manifest
    assert image.manifest.annotations == {"base": "b"}


def test_the_environment_changes_only_where_asked() -> None:
    given = ["PATH=/usr/bin", "PYTHONPATH=/base", "KEEP=a=b", "TWICE=1", "TWICE=2", "EMPTY="]
    image = _append(
        {"PATH": "/opt/env/bin:/usr/bin", "PYTHONPATH": None, "PYTHONHOME": None, "NEW": "n"}, config={"Env": given}
    )
    wanted = ["PATH=/opt/env/bin:/usr/bin", "KEEP=a=b", "TWICE=2", "EMPTY=", "NEW=n"]
    assert _config(image)["config"]["Env"] == wanted


def test_what_a_builder_left_of_its_own_machine_is_dropped_and_all_else_stays() -> None:
    left: dict[str, Any] = {
        **dict.fromkeys(("container", "id", "parent", "docker_version"), "x"),
        "container_config": {"Env": ["S=1"]},
    }
    image = _append(**left, author="me", config={"Cmd": ["sh"], "User": "1000", "Labels": {"a": "b"}})
    config = _config(image)
    assert not left.keys() & config.keys()
    assert config["author"] == "me" and config["os"] == "linux"
    assert config["config"] == {"Cmd": ["sh"], "User": "1000", "Labels": {"a": "b"}, "Env": []}


def test_the_time_is_the_base_s_or_a_fixed_one() -> None:
    assert _config(_append(created="2020-01-01T00:00:00Z"))["created"] == "2020-01-01T00:00:00Z"
    assert _config(_append())["created"] == EPOCH


@pytest.mark.parametrize("history", [None, [], "text", [{"created_by": "one of two"}], [{}] * 5])
def test_a_history_that_does_not_tell_of_the_base_s_layers_is_dropped(history: Any) -> None:
    image = _append(history=history)
    assert "history" not in _config(image)
    assert check_image(image.manifest, image.config)


def test_equal_bases_give_equal_bytes_whatever_the_order_of_their_keys() -> None:
    config = config_of(LAYERS)
    turned = json.dumps(dict(reversed(config.items()))).encode()
    base = ImageManifest.from_bytes(manifest_of([layer.descriptor for layer in LAYERS], turned))
    again = append(base, ImageConfig.from_bytes(turned), [ADDED], environment={}, annotations={"base": "b"})
    assert again == _append()


def test_docker_s_layers_become_oci_s() -> None:
    config = json.dumps(config_of(LAYERS)).encode()
    layers = [Descriptor(types.DOCKER_LAYER_GZIP, x.descriptor.digest, x.descriptor.size) for x in LAYERS]
    base = ImageManifest.from_bytes(manifest_of(layers, config, mediaType=types.DOCKER_MANIFEST))
    image = append(base, ImageConfig.from_bytes(config), [], environment={}, annotations={})
    assert {layer.media_type for layer in image.manifest.layers} == {types.LAYER_GZIP}
    assert json.loads(image.content)["mediaType"] == types.IMAGE_MANIFEST
    assert "annotations" not in json.loads(image.content)


def test_a_manifest_and_config_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ImageError, match="lists 2 layers and 1 diff ids"):
        _append(rootfs={"type": "layers", "diff_ids": [LAYERS[0].diff_id]})

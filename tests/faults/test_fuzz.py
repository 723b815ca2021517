"""Whatever others send or write, only errors of our tree escape: the readers that have no such test beside them."""

import asyncio
import base64
import json
import tempfile
from contextlib import suppress
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from yarl import URL

from prefect_environments.core.build.wheel import Wheel
from prefect_environments.core.distribution.connection import Limits
from prefect_environments.core.distribution.credentials import DockerConfig
from prefect_environments.core.distribution.http import Transport
from prefect_environments.core.distribution.messages import Request
from prefect_environments.core.distribution.reference import Reference
from prefect_environments.core.errors import DefinitionError, PackageError, PrefectEnvironmentsError, ResolveError
from prefect_environments.core.lock import pylock
from prefect_environments.core.lock.model import Lock, LockedPackage
from prefect_environments.core.oci.image import ImageConfig, ImageManifest
from prefect_environments.core.oci.repository import Traffic
from prefect_environments.core.stores import ImageLocation
from tests.core.build.parts import TARGET, demo

WORDS = st.text(max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=8,
)
HEX = st.text("0123456789abcdef", min_size=64, max_size=64)


def object_with(**keys: st.SearchStrategy[object]) -> st.SearchStrategy[dict[str, object]]:
    """A JSON object with some of these keys, each with what belongs there or with anything."""
    return st.fixed_dictionaries({}, optional={key: found | VALUES for key, found in keys.items()})


ENTRY = object_with(auth=st.binary(max_size=20).map(lambda raw: base64.b64encode(raw).decode()), username=WORDS,
                    password=WORDS, identitytoken=WORDS)  # fmt: skip


@given(object_with(auths=st.dictionaries(st.just("registry.example.com") | WORDS, ENTRY | VALUES, max_size=3)) | VALUES)
def test_any_docker_configuration_is_read_or_refused_without_its_content(config: object) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "config.json")
        file.write_text(json.dumps(config))
        try:
            found = asyncio.run(DockerConfig(files=(file,)).get("registry.example.com"))
        except PrefectEnvironmentsError as error:
            assert str(file) in str(error)
        else:
            assert found is None or isinstance(found.username, str)


@given(st.text(max_size=200) | st.from_regex(r"(https?|file|ftp)?:?//[^/]{0,20}(/[^ ]{0,20})?", fullmatch=True))
def test_any_location_is_an_address_of_http_or_refused(location: str) -> None:
    origin = URL("https://registry.example.com/")

    async def resolve() -> URL:
        transport = Transport(
            origin, "registry.example.com", credentials=None, ca_file=None, limits=Limits(), traffic=Traffic()
        )
        request = Request(method="GET", url=origin, where="registry.example.com/a", step="download")
        return transport.resolve(request, origin / "v2/a", location)

    try:
        found = asyncio.run(resolve())
    except PrefectEnvironmentsError as error:
        assert "registry.example.com/a: download" in str(error)
    else:
        assert found.scheme == "https" and found.host and not found.user


@given(st.text(max_size=80) | st.from_regex(r"[\w.]+-[\w.]+(-\d\w*)?-py3-none-any\.whl", fullmatch=True))
def test_any_wheel_file_name_names_its_package_or_is_refused(name: str) -> None:
    with suppress(ValueError):  # what its docstring promises
        assert LockedPackage.of_file(name, "0" * 64, 1).filename == name
    with tempfile.TemporaryDirectory() as folder:
        path = demo(Path(folder))
        try:
            Wheel.open(path, name, TARGET).close()
        except PackageError as error:
            assert "wheel" in str(error)


PACKAGE = object_with(
    name=st.sampled_from(["numpy", "a_b"]),
    version=st.just("1.0"),
    wheels=st.lists(
        object_with(
            name=st.just("numpy-1.0-py3-none-any.whl"),
            url=st.just("https://files.example.com/numpy-1.0-py3-none-any.whl"),
            path=WORDS,
            size=st.integers(),
            hashes=object_with(sha256=HEX),
        ),
        max_size=2,
    ),
    sdist=object_with(url=WORDS, hashes=object_with(sha256=HEX)),
    archive=object_with(url=WORDS, path=WORDS, hashes=object_with(sha256=HEX)),
    vcs=object_with(type=st.just("git"), url=WORDS),
    directory=object_with(path=WORDS),
    marker=st.sampled_from(["python_version > '3'", "nonsense"]),
)
TARGETS = object_with(python=st.just("3.11.4"), interpreter=WORDS, libc=st.just("glibc"), platform=WORDS,
                      **{"libc-version": st.just("2.36")})  # fmt: skip
TOOL = object_with(
    base=object_with(name=WORDS, digest=HEX.map(lambda text: f"sha256:{text}")),
    target=TARGETS,
    requested=st.lists(WORDS, max_size=2),
)
DOCUMENT = object_with(
    packages=st.lists(PACKAGE | VALUES, max_size=2), tool=object_with(**{"prefect-environments": TOOL})
)


def toml(value: object) -> str:
    """TOML of JSON-like values: what TOML does not have, such as null, becomes a string."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(key))} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value if isinstance(value, str) else str(value)) if not isinstance(value, int) else str(value)


@settings(max_examples=300)
@given(DOCUMENT)
def test_any_pylock_is_read_or_refused(document: dict[str, object]) -> None:
    text = "\n".join(f"{json.dumps(key)} = {toml(value)}" for key, value in document.items())
    for read in (Lock.from_pylock, lambda given: pylock.read(given, Path("/nowhere"))):
        try:
            read(text)
        except (ResolveError, PrefectEnvironmentsError) as error:
            assert str(error)


@given(st.text(max_size=300))
def test_any_text_is_a_lock_or_refused(text: str) -> None:
    for read in (Lock.from_pylock, lambda given: pylock.read(given, Path("/nowhere"))):
        try:
            read(text)
        except PrefectEnvironmentsError as error:
            assert str(error)


DESCRIPTOR = object_with(
    mediaType=WORDS,
    digest=HEX.map(lambda text: f"sha256:{text}"),
    size=st.integers(),
    annotations=VALUES,
    platform=VALUES,
)


@given(
    object_with(
        schemaVersion=st.just(2),
        config=DESCRIPTOR,
        layers=st.lists(DESCRIPTOR, max_size=3),
        subject=DESCRIPTOR,
        artifactType=WORDS,
        annotations=st.dictionaries(WORDS, WORDS, max_size=2),
    )
)
def test_any_manifest_is_read_or_refused(document: dict[str, object]) -> None:
    try:
        manifest = ImageManifest.from_bytes(json.dumps(document).encode())
    except PrefectEnvironmentsError:
        return
    assert ImageManifest.from_bytes(manifest.to_bytes()).layers == manifest.layers


@given(
    object_with(
        os=WORDS,
        config=object_with(Env=st.lists(WORDS, max_size=2)),
        history=VALUES,
        rootfs=object_with(diff_ids=st.lists(HEX.map(lambda text: f"sha256:{text}"), max_size=2)),
    )
)
def test_any_image_config_is_read_or_refused(document: dict[str, object]) -> None:
    try:
        config = ImageConfig.from_bytes(json.dumps(document).encode())
    except PrefectEnvironmentsError:
        return
    assert isinstance(config.environment, dict) and len(config.platform) == 2 and config.settings is not None


@given(st.text(max_size=60) | st.text("aA0./:@[]-_", max_size=30))
def test_any_image_reference_reads_back_as_itself_or_is_refused(text: str) -> None:
    try:
        assert Reference.parse(str(Reference.parse(text))) == Reference.parse(text)
        ImageLocation.parse(text)
    except DefinitionError as error:
        assert str(error)

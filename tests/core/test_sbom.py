"""The bill of materials: complete, in its standard's words, and the same bytes for the same lock."""

import json
import re
from dataclasses import replace

from prefect_environments.core.lock.model import Lock, LockedBase, LockedCondaPackage, LockedPackage
from prefect_environments.core.lock.target import Target
from prefect_environments.core.sbom import MEDIA_TYPE, write_sbom

LOCK = Lock(
    LockedBase("registry.example.com/python:3.12", "sha256:" + "a" * 64),
    Target("3.12.7", "/usr/local/bin/python3.12", "glibc", "2.36"),
    (
        LockedPackage(
            "zlib-ng", "1.0", "zlib_ng-1.0-cp312-cp312-manylinux_2_17_x86_64.whl", "b" * 64, 10, "https://a/"
        ),
        LockedPackage("torch", "2.5.1+cpu", "torch-2.5.1+cpu-cp312-cp312-linux_x86_64.whl", "c" * 64),
    ),
)


def test_it_names_the_base_and_every_wheel_with_its_sha256() -> None:
    document = json.loads(write_sbom(LOCK))
    base, *packages = document["components"]
    assert (base["type"], base["name"], base["version"]) == ("container", LOCK.base.name, LOCK.base.digest)
    assert base["hashes"] == [{"alg": "SHA-256", "content": "a" * 64}]
    assert [(p["name"], p["version"], p["hashes"][0]["content"]) for p in packages] == [
        ("torch", "2.5.1+cpu", "c" * 64),
        ("zlib-ng", "1.0", "b" * 64),
    ]
    assert [p["properties"][0]["value"] for p in packages] == [p.filename for p in LOCK.packages]


def test_it_keeps_to_cyclonedx() -> None:
    """What version 1.5 requires: the format's name, a version number, unique references, known types, hex digests."""
    document = json.loads(write_sbom(LOCK))
    assert MEDIA_TYPE == "application/vnd.cyclonedx+json"
    assert (document["bomFormat"], document["specVersion"], document["version"]) == ("CycloneDX", "1.5", 1)
    assert document.keys() <= {"bomFormat", "specVersion", "version", "metadata", "components"}
    references = [component["bom-ref"] for component in document["components"]]
    assert len(set(references)) == len(references)
    for component in document["components"]:
        assert component["type"] in {"container", "library"}
        assert all(re.fullmatch(r"[0-9a-f]{64}", known["content"]) for known in component["hashes"])


def test_a_package_url_escapes_what_its_grammar_reserves() -> None:
    """The `+` of a local version is `%2B` in a purl (Package-URL specification, "version")."""
    purls = [component.get("purl") for component in json.loads(write_sbom(LOCK))["components"]]
    assert purls == [None, "pkg:pypi/torch@2.5.1%2Bcpu", "pkg:pypi/zlib-ng@1.0"]


def test_the_same_lock_gives_the_same_bytes_whatever_its_mirrors_and_order() -> None:
    again = Lock(LOCK.base, LOCK.target, tuple(reversed(LOCK.packages)), ("torch",))
    elsewhere = Lock.from_pylock(again.to_pylock().replace("https://a/", "https://mirror.example.com/"))
    assert write_sbom(again) == write_sbom(LOCK) == write_sbom(elsewhere)


def test_conda_packages_are_named_as_the_purl_specification_says() -> None:
    conda = LockedCondaPackage(
        "libgomp", "14.2.0", "h77fa898_1", "linux-64", "libgomp-14.2.0-h77fa898_1.conda", "d" * 64
    )
    document = json.loads(write_sbom(replace(LOCK, conda=(conda,))))
    assert document["components"][-1]["purl"] == (
        "pkg:conda/libgomp@14.2.0?build=h77fa898_1&subdir=linux-64&type=conda"
    )
    assert document["components"][-1]["hashes"] == [{"alg": "SHA-256", "content": "d" * 64}]

"""What this machine can do at best with the bytes of one build: the floor that a cold build stands on."""

import hashlib
import json
import subprocess
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from zlib_ng import zlib_ng

from tests.support.registry import Registry

CHUNK = 1024 * 1024


def timed(work: Callable[[], Any]) -> float:
    """Seconds of wall time."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def download(urls: Iterable[str], folder: Path, at_once: int) -> float:
    """Seconds that curl takes for the wheels from their index."""
    folder.mkdir(parents=True)
    lines = [f'url = "{url}"\noutput = "{folder / Path(url.partition("#")[0]).name}"\n' for url in urls]
    return timed(lambda: _curl(lines, at_once, folder))


def upload(blobs: list[Path], registry: Registry, repository: str, at_once: int) -> float:
    """Seconds that curl takes to send blobs, the opening of their sessions not counted."""
    lines = []
    for blob in blobs:
        request = urllib.request.Request(f"{registry.url}/v2/{repository}/blobs/uploads/", method="POST")
        with urllib.request.urlopen(request, timeout=30) as opened:
            place = opened.headers["Location"]
        lines.append(
            f'url = "{place}&digest=sha256:{blob.parent.name}"\nupload-file = "{blob}"\noutput = "/dev/null"\n'
            'header = "Content-Type: application/octet-stream"\n'
        )
    return timed(lambda: _curl(lines, at_once, registry.folder.parent))


def _curl(transfers: list[str], at_once: int, folder: Path) -> None:
    """One curl for all transfers, so that connections are used again."""
    config = folder / "curl.conf"
    config.write_text("next\n".join(f"silent\nfail\n{lines}" for lines in transfers))
    parallel = ["--parallel", "--parallel-max", str(at_once)] if at_once > 1 else []
    subprocess.run(["curl", "--no-progress-meter", "--fail-early", *parallel, "--config", str(config)], check=True)


def sha256(files: list[Path]) -> float:
    """Seconds of one core to hash files, as they are on disk."""

    def hash_all() -> None:
        for path in files:
            with path.open("rb") as file:
                hashlib.file_digest(file, "sha256")

    return timed(hash_all)


def convert(wheels: list[Path], at_once: int) -> float:
    """Seconds to inflate every member of the wheels and to hash and check what comes out, in so many threads.

    No layer can be made with less: its diff id is the hash of uncompressed bytes.
    """

    def inflate(path: Path) -> None:
        hasher = hashlib.sha256()
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            for member in archive.infolist():
                file.seek(member.header_offset + 26)
                lengths = file.read(4)
                file.seek(int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little"), 1)
                content = file.read(member.compress_size)
                if member.compress_type == zipfile.ZIP_DEFLATED:
                    content = zlib_ng.decompress(content, -15, member.file_size)
                zlib_ng.crc32(content)
                hasher.update(content)

    def all_of_them() -> None:
        largest_first = sorted(wheels, key=lambda path: -path.stat().st_size)
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(inflate, largest_first))

    return timed(all_of_them)


def resolve(uv: str, requirements: list[str], folder: Path, python: str, environment: dict[str, str]) -> float:
    """Seconds of `uv pip compile` alone, with an empty cache."""
    asked = folder / "requirements.in"
    asked.write_text("\n".join([*requirements, "pip"]) + "\n")
    command = [uv, "pip", "compile", "--quiet", "--generate-hashes", "--format=pylock.toml", "--no-config"]
    command += [
        "--python-version",
        python,
        "--python-platform=x86_64-manylinux_2_36",
        "-o",
        str(folder / "pylock.toml"),
    ]
    return timed(lambda: subprocess.run([*command, str(asked)], check=True, env=environment, capture_output=True))


def blobs_of(registry: Registry, repository: str, digest: str) -> list[Path]:
    """The files in the registry's store that an image's manifest names."""
    path = f"{registry.url}/v2/{repository}/manifests/{digest}"
    accept = {"Accept": "application/vnd.oci.image.manifest.v1+json"}
    with urllib.request.urlopen(urllib.request.Request(path, headers=accept), timeout=30) as answer:
        manifest = json.loads(answer.read())
    store = registry.folder / "docker/registry/v2/blobs/sha256"
    hexes = [layer["digest"].partition(":")[2] for layer in manifest["layers"]]
    return [store / name[:2] / name / "data" for name in hexes]

"""A layer's bytes depend on the wheels and on nothing else, and are a sound tar of bounded cost."""

import gzip
import hashlib
import io
import os
import random
import subprocess
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

import pytest

from prefect_environments.core.build import archive as archives
from prefect_environments.core.build.layer import Overlap
from prefect_environments.core.errors import PackageError
from prefect_environments.core.oci.descriptor import Descriptor
from prefect_environments.core.oci.validate import check_layer
from tests.core.build.parts import BASICS, NAME, SITE, demo, make_layer, write_members
from tests.support.wheels import make_wheel


def _wheels(folder: Path) -> list[Path]:
    noise = random.Random(7).randbytes(3_000_000)
    files = {
        "one/__init__.py": b"x = 1\n" * 4000,
        "one/noise.bin": noise,
        "one/zeros.bin": bytes(700_000),
        "one/e": b"",
    }
    one = make_wheel(folder, "one", "1.0", files, entry_points={"one": "one:main"}, scripts={"s": b"#!python\n"})
    return [one, make_wheel(folder, "two", "2.0", {"two.py": b"y = 2\n"}, compress=False)]


def test_the_blob_is_what_it_says(tmp_path: Path) -> None:
    blob, overlaps = make_layer(tmp_path / "layer", _wheels(tmp_path))
    packed = (tmp_path / "layer").read_bytes()
    content = gzip.decompress(packed)
    assert (blob.digest, blob.size) == (f"sha256:{hashlib.sha256(packed).hexdigest()}", len(packed))
    assert (blob.diff_id, blob.unpacked) == (f"sha256:{hashlib.sha256(content).hexdigest()}", len(content))
    check_layer(tmp_path / "layer", Descriptor(blob.media_type, blob.digest, blob.size), blob.diff_id)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        members = archive.getmembers()
        read = archive.extractfile(f"{SITE}/one/noise.bin")
        assert read is not None and read.read() == random.Random(7).randbytes(3_000_000)
    assert len(members) == blob.files and overlaps == []


def test_every_folder_is_listed_once_and_nothing_is_of_this_machine(tmp_path: Path) -> None:
    make_layer(tmp_path / "layer", _wheels(tmp_path))
    with tarfile.open(tmp_path / "layer", "r:gz") as archive:
        members = archive.getmembers()
    names = [member.name for member in members]
    assert names == sorted(set(names))
    folders = {member.name for member in members if member.isdir()}
    assert {str(parent) for name in names for parent in Path(name).parents} - {"."} == folders
    assert {member.mode for member in members if member.isdir()} == {0o755}
    assert {(m.uid, m.gid, m.uname, m.gname, m.mtime) for m in members} == {(0, 0, "", "", 1)}


_PROGRAM = """
import sys
from pathlib import Path
from tests.core.build.parts import make_layer
print(make_layer(Path(sys.argv[1]), [Path(p) for p in sys.argv[2:]])[0].digest)
"""


@pytest.mark.parametrize(
    ("zone", "seed", "umask"), [("UTC", "0", 0o022), ("Asia/Kathmandu", "1", 0o077), ("America/Lima", "random", 0)]
)
def test_no_zone_seed_umask_or_process_changes_the_bytes(zone: str, seed: str, umask: int, tmp_path: Path) -> None:
    wheels = _wheels(tmp_path)
    here, _ = make_layer(tmp_path / "here", wheels)
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, tmp_path / "there", *wheels],
        env={**os.environ, "TZ": zone, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[3])},
        cwd=tmp_path,
        umask=umask,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == here.digest
    assert (tmp_path / "there").read_bytes() == (tmp_path / "here").read_bytes()


@pytest.mark.parametrize("chunk", [1000, 4096, 65_521])
def test_where_a_stream_is_split_changes_no_byte(chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions of zlib hand out a stream in other pieces."""
    wheels = _wheels(tmp_path)
    usual, _ = make_layer(tmp_path / "usual", wheels)
    monkeypatch.setattr(archives, "CHUNK", chunk)
    assert make_layer(tmp_path / "split", wheels)[0] == usual


def test_the_order_of_members_in_the_archive_changes_no_byte(tmp_path: Path) -> None:
    files = {f"m{n}.py": b"%d\n" % n * 500 for n in range(9)} | BASICS
    first = write_members(tmp_path / "1", files)
    second = write_members(tmp_path / "2", dict(reversed(files.items())))
    assert first.read_bytes() != second.read_bytes()
    assert make_layer(tmp_path / "a", [first])[0] == make_layer(tmp_path / "b", [second])[0]


def test_the_later_wheel_wins_and_it_is_reported(tmp_path: Path) -> None:
    a = make_wheel(tmp_path, "a", "1", {"shared.py": b"of a", "only_a.py": b""})
    b = make_wheel(tmp_path, "b", "1", {"shared.py": b"of b"})
    for wheels, winner, loser in (([a, b], "b", "a"), ([b, a], "a", "b")):
        _, overlaps = make_layer(tmp_path / "layer", wheels)
        assert overlaps == [Overlap(f"{SITE}/shared.py", loser, winner)]
        with tarfile.open(tmp_path / "layer", "r:gz") as archive:
            read = archive.extractfile(f"{SITE}/shared.py")
            assert read is not None and read.read() == f"of {winner}".encode()


def test_a_folder_of_one_wheel_wins_over_a_file_of_another_and_it_is_reported(tmp_path: Path) -> None:
    a = make_wheel(tmp_path, "a", "1", {"thing": b"a file"})
    b = make_wheel(tmp_path, "b", "1", {"thing/x.py": b"below"})
    for wheels in ([a, b], [b, a]):
        _, overlaps = make_layer(tmp_path / "layer", wheels)
        assert overlaps == [Overlap(f"{SITE}/thing", "a", "b")]
        with tarfile.open(tmp_path / "layer", "r:gz") as archive:
            assert archive.getmember(f"{SITE}/thing").isdir()


def test_a_compressed_member_is_taken_over_as_it_is(tmp_path: Path) -> None:
    content = b"some text that compresses\n" * 5000
    path = demo(tmp_path, {"big.py": content})
    blob, _ = make_layer(tmp_path / "layer", [path])
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("big.py")
        with path.open("rb") as file:
            file.seek(info.header_offset + 30 + len(info.filename))
            assert file.read(info.compress_size) in (tmp_path / "layer").read_bytes()
    assert blob.unpacked > len(content) > 20 * blob.size


def test_a_wheel_that_lies_gives_no_layer(tmp_path: Path) -> None:
    path = demo(tmp_path, {"a.py": b"x" * 1000})
    content = path.read_bytes().replace(zlib.crc32(b"x" * 1000).to_bytes(4, "little"), b"\1\2\3\4")
    path.write_bytes(content)
    with pytest.raises(PackageError, match=rf"{NAME}.*size and CRC"):
        make_layer(tmp_path / "layer", [path])


_MEASURE = """
import resource, sys
from pathlib import Path
from tests.core.build.parts import make_layer
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
blob, _ = make_layer(Path(sys.argv[1]), [Path(sys.argv[2])])
print(blob.unpacked, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_member_of_300_mb_takes_little_memory(method: int, tmp_path: Path) -> None:
    path = tmp_path / NAME
    block = random.Random(1).randbytes(4000) + bytes(1_000_000 - 4000)
    with zipfile.ZipFile(path, "w", method, compresslevel=1) as archive:
        with archive.open("big.bin", "w") as member:
            for _ in range(300):
                member.write(block)
        for name, content in BASICS.items():
            archive.writestr(name, content)
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, tmp_path / "layer", path],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        check=True,
    )
    unpacked, grown = map(int, done.stdout.split())
    assert unpacked > 300_000_000
    assert grown < 100 * 1024, "in KiB"

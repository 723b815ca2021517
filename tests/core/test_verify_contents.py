"""The files of a layer against the lists that its packages bring: whatever does not fit is one sentence."""

import base64
import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest

from prefect_environments.core.build.plan import PlannedLayer
from prefect_environments.core.errors import ImageError
from prefect_environments.core.lock.model import Lock, LockedBase, LockedCondaPackage, LockedPackage
from prefect_environments.core.lock.target import Target
from prefect_environments.core.verify.contents import problems_of, read_files

SITE = "opt/env/lib/python3.12/site-packages"
ALPHA = LockedPackage("alpha-b", "1.0", "alpha_b-1.0-py3-none-any.whl", "a" * 64)
CONDA = LockedCondaPackage("tool", "2.0", "h1_0", "linux-64", "tool-2.0-h1_0.conda", "c" * 64)
LOCK = Lock(
    LockedBase("registry.example.com/python:3.12", f"sha256:{'a' * 64}"),
    Target("3.12.7", "/usr/bin/python3.12", "glibc", "2.36"),
    (ALPHA,),
    conda=(CONDA,),
)
WHEELS, PACKAGES = PlannedLayer("k", "alpha-b 1.0", (ALPHA,)), PlannedLayer("k", "tool", conda=(CONDA,))
CODE = b"print('alpha')\n"


def record(*rows: tuple[str, bytes | None]) -> bytes:
    lines = []
    for name, content in rows:
        digest = base64.urlsafe_b64encode(hashlib.sha256(content or b"").digest()).rstrip(b"=").decode()
        lines.append(f"{name},{f'sha256={digest}' if content is not None else ''},\n")
    return "".join(lines).encode()


def wheel_files(**changes: bytes | None) -> dict[str, bytes]:
    """An installed wheel's files; a change by the end of a path, `None` leaves a file out."""
    info = f"{SITE}/alpha_b-1.0.dist-info"
    rows = [("alpha.py", CODE), ("../../../bin/alpha", b"#!\n"), ("__pycache__/alpha.pyc", None)]
    files = {
        f"{SITE}/alpha.py": CODE,
        "opt/env/bin/alpha": b"#!\n",
        f"{SITE}/__pycache__/alpha.pyc": b"compiled where nobody looks",
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: Alpha.B\nVersion: 1.0.0\n\nName: other\n",
    }
    listed = [
        *rows,
        ("alpha_b-1.0.dist-info/METADATA", files[f"{info}/METADATA"]),
        ("alpha_b-1.0.dist-info/RECORD", None),
    ]
    files[f"{info}/RECORD"] = record(*listed)
    for end, content in changes.items():
        (path,) = [path for path in files if path.endswith(f"/{end}")] or [f"{SITE}/{end}"]
        files[path] = content or b""
        if content is None:
            del files[path]
    return files


def conda_files(**changes: object) -> dict[str, bytes]:
    paths = [
        {"_path": "bin/tool", "path_type": "hardlink", "sha256": "0" * 64, "sha256_in_prefix": _hex(b"tool")},
        {"_path": "share/doc", "path_type": "directory"},
        {"_path": "lib/plain", "path_type": "hardlink", "sha256": _hex(b"plain")},
    ]
    told = {"name": "tool", "version": "2.0", "build": "h1_0", "sha256": "c" * 64, "paths_data": {"paths": paths}}
    return {
        "opt/env/bin/tool": b"tool",
        "opt/env/lib/plain": b"plain",
        "opt/env/conda-meta/tool-2.0-h1_0.json": json.dumps(told | changes).encode(),
    }


def _hex(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def layer(folder: Path, files: dict[str, bytes], *links: str, kind: bytes = tarfile.SYMTYPE) -> Path:
    path = folder / "layer.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "elsewhere"
            archive.addfile(info)
    return path


def problems(planned: PlannedLayer, path: Path) -> list[str]:
    return list(problems_of(planned, LOCK, read_files(path)))


def test_what_packages_list_is_all_there_is_and_nothing_is_wrong(tmp_path: Path) -> None:
    """Names by PEP 503, versions by PEP 440, bytecode without a hash, files out of site-packages."""
    assert problems(WHEELS, layer(tmp_path, wheel_files())) == []
    assert problems(PACKAGES, layer(tmp_path, conda_files())) == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"alpha.py": b"import os\n"}, f"/{SITE}/alpha.py is not the file whose sha256 the RECORD gives"),
        ({"alpha.py": None}, f"/{SITE}/alpha.py is missing, which a RECORD lists"),
        ({"more.pth": b"import os"}, f"/{SITE}/more.pth is in no RECORD"),
        ({"METADATA": b"Name: other\nVersion: 1.0\n"}, "alpha-b 1.0 of the lock is not in it"),
        ({"METADATA": b"Name: alpha-b\nVersion: 1.1\n"}, "it has alpha-b 1.1, which is not in the lock's place"),
        ({"METADATA": None}, "alpha-b 1.0 of the lock is not in it"),
        ({"RECORD": b""}, f"/{SITE}/alpha.py is in no RECORD"),
    ],
)
def test_a_wheels_file_that_is_not_as_listed_is_named(
    changes: dict[str, bytes | None], says: str, tmp_path: Path
) -> None:
    assert says in problems(WHEELS, layer(tmp_path, wheel_files(**changes)))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"version": "2.1"}, "tool 2.0=h1_0 of the lock is not in it"),
        ({"sha256": "d" * 64}, "tool 2.0=h1_0 is of another file than the lock's"),
        ({"paths_data": {"paths": []}}, "/opt/env/bin/tool is in no conda-meta record"),
    ],
)
def test_a_conda_package_that_is_not_the_locks_is_named(changes: dict[str, object], says: str, tmp_path: Path) -> None:
    assert says in problems(PACKAGES, layer(tmp_path, conda_files(**changes)))


@pytest.mark.parametrize(
    ("planned", "end", "content"),
    [
        (PACKAGES, "tool-2.0-h1_0.json", b"[]"),
        (PACKAGES, "tool-2.0-h1_0.json", b"{"),
        (PACKAGES, "tool-2.0-h1_0.json", b'{"paths_data": null}'),
        (WHEELS, "RECORD", b"alpha.py,sha256=x,\n"),
        (WHEELS, "RECORD", b"a" * 200_000),
    ],
)
def test_a_list_of_files_that_is_none_is_refused(
    planned: PlannedLayer, end: str, content: bytes, tmp_path: Path
) -> None:
    files = conda_files() if planned is PACKAGES else wheel_files()
    changed = {path: content if path.endswith(end) else old for path, old in files.items()}
    with pytest.raises(ImageError, match="list of a package's files cannot be read"):
        problems(planned, layer(tmp_path, changed))


def test_a_conda_file_with_other_bytes_is_named(tmp_path: Path) -> None:
    files = conda_files() | {"opt/env/bin/tool": b"tool "}
    assert problems(PACKAGES, layer(tmp_path, files)) == [
        "/opt/env/bin/tool is not the file whose sha256 the conda-meta record gives"
    ]


def test_a_link_that_nobody_lists_is_named_and_a_hard_link_is_refused(tmp_path: Path) -> None:
    assert problems(WHEELS, layer(tmp_path, wheel_files(), f"{SITE}/link.py")) == [f"/{SITE}/link.py is in no RECORD"]
    with pytest.raises(ImageError, match="neither a file nor a folder nor a link"):
        read_files(layer(tmp_path, wheel_files(), f"{SITE}/link.py", kind=tarfile.LNKTYPE))


def test_a_listed_file_in_place_of_which_is_a_link_is_named(tmp_path: Path) -> None:
    """A link would hide what the package brought behind something else."""
    found = problems(WHEELS, layer(tmp_path, wheel_files(**{"alpha.py": None}), f"{SITE}/alpha.py"))
    assert found == [f"/{SITE}/alpha.py is a link, not the file whose sha256 the RECORD gives"]


def test_a_layer_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    path = layer(tmp_path, wheel_files())
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ImageError, match="not a sound archive"):
        read_files(path)

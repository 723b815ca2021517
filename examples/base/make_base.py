"""Make a small base image with Debian's Python, as an OCI image layout, from this machine's own package sources.

    python examples/base/make_base.py .cache/base

No Docker, and nothing but the standard library: mmdebstrap downloads the packages (apt checks their signatures) and
unpacks them, and this script turns the files into one layer, a config, a manifest and an index (OCI image-spec,
image-layout.md). No maintainer script runs; the few files that those would make are made here.
"""

import argparse
import copy
import gzip
import hashlib
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

NO_PYTHON = ("base-files", "base-passwd", "dash")
PYTHON = (*NO_PYTHON, "ca-certificates", "coreutils", "libstdc++6", "python3")
RECIPE = "2"
"""Changes when the same packages would give another image, so that callers can key a cache by it."""

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "ppc64le": "ppc64le", "s390x": "s390x"}
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"

# Copyright notices stay: they are a condition of shipping the files.
_DROPPED = re.compile(
    r"(boot|dev|media|mnt|opt|proc|run|srv|sys)/.*"
    r"|etc/(apt|resolv\.conf|hostname|machine-id|dpkg)(/.*)?"
    r"|usr/share/(bash-completion|debconf|i18n|info|lintian|locale|man|perl5|pixmaps)(/.*)?"
    r"|usr/share/doc/[^/]+/(?!copyright$).*"
    r"|usr/lib/[^/]+/(gconv|perl-base|perl)(/.*)?"
    r"|var/(cache|lib/apt|log)/.*"
    r"|var/lib/dpkg/(?!status$).*"
)

# The unpacked packages are what dpkg would call installed: scanners and tools look for versions there.
_STATUS_HOOK = """
for deb in "$1"/var/cache/apt/archives/*.deb; do
    dpkg-deb --field "$deb" | sed '1a Status: install ok installed'
    echo
done > "$1/var/lib/dpkg/status"
"""


class CannotMakeBase(RuntimeError):
    """No base image can be made on this machine; the message says what to do."""


def make_base(folder: Path, *, ref: str = "base", packages: tuple[str, ...] = PYTHON) -> str:
    """Write a new OCI image layout with one image named `ref` to `folder`; gives the manifest's digest.

    The folder appears complete or not at all. Raises `CannotMakeBase` with what to do.
    """
    folder = folder.absolute()
    if folder.exists():
        raise CannotMakeBase(f"{folder} exists already; delete it, or choose another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".making-base-", dir=folder.parent) as work:
        root = Path(work, "root.tar")
        _bootstrap(root, packages)
        layout = Path(work, "layout")
        digest = _write_layout(layout, root, ref)
        layout.chmod(0o755)
        layout.rename(folder)
    return digest


def sources() -> tuple[str, str]:
    """This machine's release name, and its own package sources for that release as deb822 and one-line text."""
    codename = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    suites = {codename, f"{codename}-updates", f"{codename}-security"}
    found: list[str] = []
    apt = Path("/etc/apt")
    for path in sorted([apt / "sources.list", *apt.glob("sources.list.d/*")]):
        if path.suffix == ".sources":
            found += [stanza for stanza in _stanzas(path.read_text()) if _of_release(stanza, suites)]
        elif path.suffix == ".list" and path.exists():
            lines = [line for line in path.read_text().splitlines() if _line_of_release(line, suites)]
            found += ["\n".join(lines)] if lines else []
    if not codename or not found:
        raise CannotMakeBase(
            "this machine has no Debian package sources of its own release; run on Debian or Ubuntu, or give a base "
            "image that exists, as registry/repository:tag or oci:FOLDER:TAG"
        )
    return codename, "\n\n".join(found) + "\n"


def _stanzas(text: str) -> list[str]:
    """The stanzas of a deb822 file, without comments (sources.list(5))."""
    lines = (line.rstrip() for line in text.splitlines() if not line.startswith("#"))
    return [stanza.strip() for stanza in re.split(r"\n{2,}", "\n".join(lines)) if stanza.strip()]


def _of_release(stanza: str, suites: set[str]) -> bool:
    fields = {
        key.lower(): value.split() for key, value in re.findall(r"^([\w-]+):((?:.*)(?:\n[ \t].*)*)", stanza, re.M)
    }
    wanted = set(fields.get("suites", [])) <= suites and "main" in fields.get("components", [])
    return wanted and "deb" in fields.get("types", []) and fields.get("enabled") != ["no"]


def _line_of_release(line: str, suites: set[str]) -> bool:
    words = re.sub(r"\[.*?\]", "", line).split()
    return len(words) > 3 and words[0] == "deb" and words[2] in suites and "main" in words[3:]


def _bootstrap(target: Path, packages: tuple[str, ...]) -> None:
    """Unpack `packages` and what they depend on into the tar file `target`."""
    codename, origin = sources()
    _need_mmdebstrap()
    command = ["mmdebstrap", "--variant=extract", "--format=tar", f"--include={','.join(packages)}"]
    command += [f"--mode={'root' if os.geteuid() == 0 else 'unshare'}", "--skip=output/dev", "--skip=chroot/mount"]
    command += ["--aptopt=Acquire::Languages none", "--aptopt=Acquire::Retries 5"]
    command += ["--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr", f"--extract-hook={_STATUS_HOOK}"]
    with target.open("wb") as output:
        # Sources come by stdin and the tar leaves by stdout: in unshare mode another user id does the work.
        done = subprocess.run(
            [*command, codename, "-", "-"], input=origin.encode(), stdout=output, stderr=subprocess.PIPE, check=False
        )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()[-2000:]
        raise CannotMakeBase(
            f"mmdebstrap ended with status {done.returncode}. Without root it needs user namespaces and a range in "
            f"/etc/subuid (package uidmap); else run as root, or give a base image that exists. It said:\n{said}"
        )


def _need_mmdebstrap() -> None:
    if shutil.which("mmdebstrap"):
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise CannotMakeBase("mmdebstrap is missing: install it as root (apt-get install mmdebstrap) and run again")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    retried = ["apt-get", "-qq", "-o", "Acquire::Retries=5"]
    install = [*retried, "install", "-y", "--no-install-recommends", "mmdebstrap"]
    for command in ([*retried, "update"], install):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotMakeBase(f"`{' '.join(install)}` failed; install mmdebstrap and run again. It said:\n{done.stderr}")


def _write_layout(layout: Path, root: Path, ref: str) -> str:
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    diff_id, layer = _write_layer(blobs, root)
    os_release = {"architecture": ARCHITECTURES.get(platform.machine(), platform.machine()), "os": "linux"}
    config = {
        **os_release,
        "created": "1970-01-01T00:00:00Z",
        "config": {
            "Cmd": ["python3"] if _has_python(root) else ["/bin/sh"],
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        },
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "examples/base/make_base.py"}],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": _write_blob(blobs, config, CONFIG),
        "layers": [layer],
    }
    entry = _write_blob(blobs, manifest, MANIFEST)
    digest = str(entry["digest"])
    entry["annotations"] = {"org.opencontainers.image.ref.name": ref}
    entry["platform"] = os_release
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (layout / "index.json").write_text(json.dumps(index))
    return digest


def _write_blob(blobs: Path, content: Mapping[str, Any], media_type: str) -> dict[str, Any]:
    data = json.dumps(content, separators=(",", ":"), sort_keys=True).encode()
    sha256 = hashlib.sha256(data).hexdigest()
    (blobs / sha256).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{sha256}", "size": len(data)}


class _Hashed(io.RawIOBase):
    """A write-only stream that hashes what it passes on."""

    def __init__(self, target: IO[bytes] | gzip.GzipFile) -> None:
        self.target, self.sha256 = target, hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        return self.target.write(data)


def _write_layer(blobs: Path, root: Path) -> tuple[str, dict[str, Any]]:
    """The diff id and the descriptor of the one layer: `root` sorted, trimmed, with fixed times and owners."""
    temporary = blobs / "layer"
    with temporary.open("wb") as file:
        packed = _Hashed(file)
        with gzip.GzipFile("", "wb", 6, packed, mtime=0) as zipped:
            plain = _Hashed(zipped)
            with tarfile.open(fileobj=plain, mode="w|", format=tarfile.PAX_FORMAT) as layer, tarfile.open(root) as tar:
                for member, content in _members(tar):
                    layer.addfile(member, content)
    size, sha256 = temporary.stat().st_size, packed.sha256.hexdigest()
    temporary.rename(blobs / sha256)
    return f"sha256:{plain.sha256.hexdigest()}", {"mediaType": LAYER, "digest": f"sha256:{sha256}", "size": size}


def _members(tar: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
    """The layer's entries by name, hard links last: a link's target must come before it."""
    kept: dict[str, tuple[tarfile.TarInfo, IO[bytes] | None]] = {}
    for member in tar.getmembers():
        name = member.name.removeprefix("./").strip("/")
        if name and name != "." and not _DROPPED.fullmatch(name) and not member.isdev():
            entry = _entry(name, member)
            kept[name] = entry, tar.extractfile(member) if member.isfile() else None
    for name, data in _generated(tar):
        entry = tarfile.TarInfo(name)
        entry.mode, entry.size = 0o644, len(data)
        kept[name] = entry, io.BytesIO(data)
    for name, mode in {"dev": 0o755, "proc": 0o755, "root": 0o700, "run": 0o755, "sys": 0o755, "tmp": 0o1777}.items():
        entry = tarfile.TarInfo(name)
        entry.type, entry.mode = tarfile.DIRTYPE, mode
        kept[name] = entry, None
    yield from (kept[name] for name in sorted(kept, key=lambda name: (kept[name][0].islnk(), name)))


def _entry(name: str, member: tarfile.TarInfo) -> tarfile.TarInfo:
    entry = copy.copy(member)
    entry.name, entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname = name, 0, 0, 0, "", ""
    entry.pax_headers = {}
    if entry.islnk():
        entry.linkname = entry.linkname.removeprefix("./")
    return entry


def _generated(tar: tarfile.TarFile) -> Iterator[tuple[str, bytes]]:
    """What maintainer scripts would write: the user database and the bundle of certificate authorities."""
    certificates = []
    for member in sorted(tar.getmembers(), key=lambda member: member.name):
        name, content = member.name.removeprefix("./"), tar.extractfile(member) if member.isfile() else None
        if content and name in ("usr/share/base-passwd/passwd.master", "usr/share/base-passwd/group.master"):
            yield f"etc/{Path(name).stem}", content.read().replace(b"/bin/bash", b"/bin/sh")
        if content and name.startswith("usr/share/ca-certificates/") and name.endswith(".crt"):
            certificates.append(content.read().strip() + b"\n")
    if certificates:
        yield "etc/ssl/certs/ca-certificates.crt", b"".join(certificates)


def _has_python(root: Path) -> bool:
    with tarfile.open(root) as tar:
        return any(name.endswith("usr/bin/python3") for name in tar.getnames())


def main() -> None:
    parser = argparse.ArgumentParser(description="Make a small Debian + Python base image as an OCI image layout.")
    parser.add_argument("folder", type=Path, help="the layout's folder; must not exist yet")
    parser.add_argument("--ref", default="base", help="the image's name in the layout (default: %(default)s)")
    parser.add_argument("--packages", help="packages to unpack, separated by commas (default: Python and a shell)")
    parser.add_argument("--no-python", action="store_true", help="a shell only, as an image without any Python")
    given = parser.parse_args()
    packages = tuple(given.packages.split(",")) if given.packages else NO_PYTHON if given.no_python else PYTHON
    try:
        digest = make_base(given.folder, ref=given.ref, packages=packages)
    except CannotMakeBase as error:
        sys.exit(f"make_base: {error}")
    print(f"oci:{given.folder}:{given.ref} {digest}")


if __name__ == "__main__":
    main()

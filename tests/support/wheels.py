"""Wheels and sdists made in tests, and a small package index (PEP 503, PEP 700) that serves a folder of them.

Equal arguments give equal bytes. An sdist carries its own build backend, so that building one needs no network."""

import base64
import csv
import gzip
import hashlib
import html
import io
import json
import re
import tarfile
import threading
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

_TIME = (1980, 1, 1, 0, 0, 0)


def _escaped(name: str) -> str:
    return re.sub(r"[-_.]+", "_", name).lower()


def _metadata(name: str, version: str, requires: Iterable[str], requires_python: str, dynamic: Iterable[str]) -> bytes:
    lines = ["Metadata-Version: 2.2", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Python: {requires_python}"] if requires_python else []
    lines += [f"Requires-Dist: {line}" for line in requires]
    lines += [f"Dynamic: {name}" for name in dynamic]
    return ("\n".join(lines) + "\n").encode()


def _record(members: Mapping[str, bytes], record: str) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for path, content in members.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        writer.writerow([path, f"sha256={digest}", len(content)])
    writer.writerow([record, "", ""])
    return text.getvalue().encode()


def make_wheel(
    folder: Path,
    name: str,
    version: str,
    files: Mapping[str, bytes] = {},
    *,
    requires: Iterable[str] = (),
    entry_points: Mapping[str, str] = {},
    scripts: Mapping[str, bytes] = {},
    tag: str = "py3-none-any",
    data: Mapping[str, bytes] = {},
    compress: bool = True,
    build: str = "",
    requires_python: str = "",
) -> Path:
    """A wheel in `folder` (binary distribution format). `entry_points` are console scripts; `scripts` go to
    `.data/scripts/`, `data` keys are paths under `.data/`; `build` is the build tag, such as `2`. Without `files`
    it has one module of its name."""
    stem = f"{_escaped(name)}-{version}"
    info = f"{stem}.dist-info"
    members = dict(files) or {f"{_escaped(name)}.py": f'__version__ = "{version}"\n'.encode()}
    members |= {f"{stem}.data/scripts/{path}": content for path, content in scripts.items()}
    members |= {f"{stem}.data/{path}": content for path, content in data.items()}
    members[f"{info}/METADATA"] = _metadata(name, version, requires, requires_python, ())
    pure = "true" if tag.endswith("-none-any") else "false"
    tags = "".join(
        f"Tag: {python}-{abi}-{platform}\n"
        for python in tag.split("-", maxsplit=1)[0].split(".")
        for abi in tag.split("-")[1].split(".")
        for platform in tag.split("-")[2].split(".")
    )
    built = f"Build: {build}\n" if build else ""
    members[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: {pure}\n{tags}{built}".encode()
    if entry_points:
        lines = "".join(f"{command} = {target}\n" for command, target in entry_points.items())
        members[f"{info}/entry_points.txt"] = f"[console_scripts]\n{lines}".encode()
    members[f"{info}/RECORD"] = _record(members, f"{info}/RECORD")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stem}{'-' + build if build else ''}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            entry = zipfile.ZipInfo(member, _TIME)
            entry.compress_type = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
            entry.external_attr = (0o755 if "/scripts/" in member else 0o644) << 16
            archive.writestr(entry, content)
    return path


_BACKEND = """
import base64, hashlib, os, pathlib, zipfile

def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    here = pathlib.Path(__file__).parent
    mark = os.environ.get("BACKEND_RAN")
    if mark:
        with open(mark, "a") as file:
            file.write("{stem}\\n")
    info = "{stem}.dist-info"
    members = {{p.name: p.read_bytes() for p in sorted(here.glob("*.py")) if p.name != "backend.py"}}
    members[info + "/METADATA"] = {metadata!r}
    members[info + "/WHEEL"] = b"Wheel-Version: 1.0\\nGenerator: tests\\nRoot-Is-Purelib: true\\nTag: {tag}\\n"
    lines = []
    for path, content in members.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        lines.append(path + ",sha256=" + digest + "," + str(len(content)) + "\\n")
    members[info + "/RECORD"] = ("".join(lines) + info + "/RECORD,,\\n").encode()
    name = "{stem}-{tag}.whl"
    with zipfile.ZipFile(os.path.join(wheel_directory, name), "w") as archive:
        for path, content in members.items():
            archive.writestr(zipfile.ZipInfo(path, (1980, 1, 1, 0, 0, 0)), content)
    return name
"""


def source_tree(
    name: str,
    version: str,
    files: Mapping[str, bytes] = {},
    *,
    requires: Iterable[str] = (),
    tag: str = "py3-none-any",
    dynamic: bool = False,
    backend: str = "",
    build_requires: Iterable[str] = (),
) -> dict[str, bytes]:
    """The files of a source distribution, by path. With `dynamic`, its requirements are known only by running its
    backend (PEP 643). The backend appends a line to the file that the variable `BACKEND_RAN` names, if set."""
    metadata = _metadata(name, version, requires, "", ())
    code = backend or _BACKEND.format(stem=f"{_escaped(name)}-{version}", metadata=metadata, tag=tag)
    facts = 'dynamic = ["version", "dependencies"]\n' if dynamic else f'version = "{version}"\n'
    if not dynamic and (lines := list(requires)):
        facts += f"dependencies = {lines}\n"
    project = f'[build-system]\nrequires = {list(build_requires)}\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    project += f'[project]\nname = "{name}"\n{facts}'
    told = _metadata(name, version, () if dynamic else requires, "", ("Requires-Dist",) if dynamic else ())
    tree = dict(files) or {f"{_escaped(name)}.py": f'__version__ = "{version}"\n'.encode()}
    return tree | {"backend.py": code.encode(), "pyproject.toml": project.encode(), "PKG-INFO": told}


def make_sdist(
    folder: Path,
    name: str,
    version: str,
    files: Mapping[str, bytes] = {},
    *,
    requires: Iterable[str] = (),
    tag: str = "py3-none-any",
    dynamic: bool = False,
    backend: str = "",
    build_requires: Iterable[str] = (),
) -> Path:
    """A source distribution in `folder` whose wheel has the tag `tag`; see `source_tree`."""
    tree = source_tree(
        name,
        version,
        files,
        requires=requires,
        tag=tag,
        dynamic=dynamic,
        backend=backend,
        build_requires=build_requires,
    )
    stem = f"{_escaped(name)}-{version}"
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(tree):
            entry = tarfile.TarInfo(f"{stem}/{path}")
            entry.size, entry.mode = len(tree[path]), 0o644
            archive.addfile(entry, io.BytesIO(tree[path]))
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{stem}.tar.gz"
    file.write_bytes(gzip.compress(raw.getvalue(), mtime=0))
    return file


@dataclass
class Index:
    """A running index. `url` is its simple API; `requests` has the path of each request that was let in, `refused`
    of each that was not."""

    url: str
    requests: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def _project_page(folder: Path, project: str, query: str) -> str:
    links = []
    for file in sorted(folder.iterdir()):
        owner = file.name.removesuffix(".tar.gz").rsplit("-", 1)[0] if file.name.endswith(".gz") else file.name
        if file.name.endswith((".whl", ".tar.gz")) and _escaped(owner.split("-")[0]) == _escaped(project):
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            name = html.escape(file.name)
            links.append(f'<a href="../../files/{name}{query}#sha256={digest}">{name}</a><br>')
    return "<!DOCTYPE html><html><body>" + "\n".join(links) + "</body></html>" if links else ""


def _project_json(folder: Path, project: str, uploaded: Mapping[str, str]) -> str:
    files = []
    for file in sorted(folder.iterdir()):
        if file.suffix == ".whl" and file.name.split("-")[0] == _escaped(project):
            content = file.read_bytes()
            entry = {"filename": file.name, "url": f"../../files/{file.name}", "size": len(content)}
            time = {"upload-time": uploaded[file.name]} if file.name in uploaded else {}
            files.append({**entry, **time, "hashes": {"sha256": hashlib.sha256(content).hexdigest()}})
    versions = sorted({str(entry["filename"]).split("-")[1] for entry in files})
    page = {"meta": {"api-version": "1.1"}, "name": project, "versions": versions, "files": files}
    return json.dumps(page) if files else ""


@contextmanager
def serve_index(
    folder: Path,
    *,
    auth: tuple[str, str] | None = None,
    query: str = "",
    uploaded: Mapping[str, str] | None = None,
) -> Iterator[Index]:
    """Serve the wheels and sdists of `folder` as it is at each request, on 127.0.0.1; `auth` is a user and password
    that every request must carry, `query` (such as `?sig=1`) is added to each file's address. With `uploaded`, times
    (RFC 3339) by file name as they are at each request, it serves wheels by PEP 700's JSON."""
    wanted = "Basic " + base64.b64encode(":".join(auth).encode()).decode() if auth else None
    index = Index("")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def _answer(self, *, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            if wanted and self.headers.get("Authorization") != wanted:
                index.refused.append(path)
                self._send(401, b"", "text/plain", body=False)
                return
            index.requests.append(path)
            kind, _, rest = path.strip("/").partition("/")
            if kind == "simple" and rest and uploaded is not None:
                page = _project_json(folder, rest.strip("/"), uploaded)
                media_type = "application/vnd.pypi.simple.v1+json"
                self._send(200 if page else 404, page.encode(), media_type, body=body)
            elif kind == "simple" and rest:
                page = _project_page(folder, rest.strip("/"), query)
                self._send(200 if page else 404, page.encode(), "text/html", body=body)
            elif kind == "files" and (folder / Path(rest).name).is_file():
                self._send(200, (folder / Path(rest).name).read_bytes(), "application/octet-stream", body=body)
            else:
                self._send(404, b"", "text/plain", body=False)

        def _send(self, status: int, content: bytes, media_type: str, *, body: bool) -> None:
            self.send_response(status)
            if status == 401:
                self.send_header("WWW-Authenticate", 'Basic realm="index"')
            self.send_header("Content-Type", media_type)
            self.send_header("Cache-Control", "no-cache")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    index.url = f"http://127.0.0.1:{server.server_address[1]}/simple/"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield index
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

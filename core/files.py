"""Files that appear whole or not at all, and locks between processes."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from prefect_environments.core.errors import StorageError


@contextmanager
def storage(what: str, path: Path) -> Iterator[None]:
    """Turn the system's errors on local files into `StorageError` that names the place and what to do."""
    try:
        yield
    except OSError as error:
        if type(error).__module__ != "builtins" or isinstance(error, ConnectionError | TimeoutError):
            raise  # the network's, not the disk's
        reason = error.strerror or type(error).__name__
        raise StorageError(
            f"{what} at {path} failed: {reason}. Check that the folder is writable and the disk is not full"
        ) from error


@contextmanager
def temporary_file(folder: Path) -> Iterator[BinaryIO]:
    """A new file under `folder`, removed at the end; locked for as long as its process lives."""
    folder.mkdir(parents=True, exist_ok=True)
    file = _new_locked(folder)
    try:
        yield file
    finally:
        try:
            file.close()  # writes what is buffered, which fails once more where the disk is full
        finally:
            with suppress(FileNotFoundError):
                Path(file.name).unlink()


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """A new folder under `parent` for its owner's eyes only, removed at the end, or by `sweep` if its process died."""
    with temporary_file(parent) as marker:
        folder = Path(f"{marker.name}.d")
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _new_locked(folder: Path) -> BinaryIO:
    while True:
        file = tempfile.NamedTemporaryFile(dir=folder, prefix="tmp-", delete=False)  # noqa: SIM115
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), os.stat(file.name)):  # noqa: PTH116
                    return file  # type: ignore[return-value]
        except BaseException:
            file.close()
            raise
        file.close()  # a sweep came between making and locking it: once more


def sweep(folder: Path) -> None:
    """Remove temporary files and folders whose process is gone: nobody holds their lock."""
    for path in folder.glob("tmp-*"):
        with suppress(OSError), path.open("r+b") as file:  # network file systems lock what is open for writing
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(f"{path}.d", ignore_errors=True)
            path.unlink()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a lock file; other processes and threads wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def publish(temporary: Path, final: Path) -> None:
    """Give a finished temporary file its name; readable by everyone whom the umask allows."""
    final.parent.mkdir(parents=True, exist_ok=True)
    open_to_all(temporary)
    temporary.replace(final)


def open_to_all(temporary: Path) -> None:
    """Let everybody read a temporary file whom the umask allows, as with any new file."""
    temporary.chmod(0o666 & ~_umask())


def write_atomically(path: Path, content: bytes, scratch: Path) -> None:
    """Replace a file's content; readers see the old one or the new one. `scratch` is on the same file system."""
    with temporary_file(scratch) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        publish(Path(file.name), path)


def _umask() -> int:
    # os.umask() can only be read by setting it, which other threads would notice; Linux shows it in /proc
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("Umask:")).split()[1], 8)
    return 0o022

"""Temporary files and folders: gone at the end, and swept when their process died."""

import signal
import subprocess
import sys
from pathlib import Path

from prefect_environments.core import files

DYING = """
import os, signal, sys
from pathlib import Path
from prefect_environments.core import files
with files.temporary_folder(Path(sys.argv[1])) as folder:
    (folder / "netrc").write_text("a password")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_temporary_folder_is_private_and_gone_at_the_end(tmp_path: Path) -> None:
    with files.temporary_folder(tmp_path) as folder:
        (folder / "file").write_text("x")
        assert folder.stat().st_mode & 0o777 == 0o700
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_a_killed_process_is_swept_and_that_of_a_living_one_is_not(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", DYING, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL and list(tmp_path.glob("*/netrc"))
    with files.temporary_folder(tmp_path) as alive:
        files.sweep(tmp_path)
        assert list(tmp_path.glob("*.d")) == [alive]

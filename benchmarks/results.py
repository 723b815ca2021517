"""RESULTS.md in sections, so that each benchmark replaces its own and leaves the others."""

import os
import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parent / "RESULTS.md"


def machine() -> str:
    """What the figures were measured with, in one sentence."""
    docker = subprocess.run(["dockerd", "--version"], capture_output=True, text=True, check=False).stdout.strip()
    return (
        f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, uv {version('uv')}, "
        f"aiohttp {version('aiohttp')}, {docker or 'no Docker'}, {time.strftime('%Y-%m-%d', time.gmtime())}."
    )


def conditions() -> str:
    """The same, and how busy the machine is at the end."""
    return f"Load average of the machine at the end: {os.getloadavg()[0]:.1f}. {machine()}"


def write(text: str, path: Path = RESULTS) -> None:
    """Put a text of one section in the place of the one with the same heading, else at the end.

    The text that starts with `# ` is the head, and comes first.
    """
    title = text.partition("\n")[0]
    old = path.read_text() if path.exists() else ""
    sections = [part if number == 0 else f"## {part}" for number, part in enumerate(("\n" + old).split("\n## "))]
    sections = [section.strip() + "\n" for section in sections if section.strip()]
    places = [
        number
        for number, section in enumerate(sections)
        if section.partition("\n")[0] == title or section[:2] == title[:2] == "# "
    ]
    at = places[0] if places else (0 if title.startswith("# ") else len(sections))
    sections[at : at + len(places[:1])] = [text.strip() + "\n"]
    path.write_text("\n".join(sections))

"""Where the conversion of wheels to layers spends its time, function by function, in one thread.

python -m benchmarks.conversion FOLDER-OF-WHEELS
"""

import cProfile
import pstats
import sys
import tempfile
import time
from pathlib import Path

from prefect_environments.core.build.layer import write_wheels
from prefect_environments.core.build.wheel import Wheel
from prefect_environments.core.lock.target import Target

TARGET = Target("3.11.2", "/usr/bin/python3", "glibc", "2.36")


def convert(wheels: list[Path]) -> int:
    """Convert every wheel to a layer of its own; gives the number of files."""
    files = 0
    for path in wheels:
        wheel = Wheel.open(path, path.name, TARGET)
        with tempfile.TemporaryFile() as out:
            files += write_wheels([(path.name, wheel)], out)[0].files
        wheel.close()
    return files


def measure(wheels: list[Path], rows: int = 12) -> tuple[int, float, list[tuple[str, int, float]]]:
    """Files, CPU seconds without a profiler, and the functions that take most: name, calls, own seconds in it."""
    convert(wheels)
    started = time.process_time()
    files = convert(wheels)
    seconds = time.process_time() - started
    profile = cProfile.Profile()
    profile.runcall(convert, wheels)
    found = pstats.Stats(profile).stats.items()  # type: ignore[attr-defined]
    top = sorted(found, key=lambda item: -item[1][2])[:rows]
    return files, seconds, [(_name(place), calls, own) for place, (_, calls, own, _, _) in top]


def _name(place: tuple[str, int, str]) -> str:
    file, _, function = place
    return function.strip("<>").replace("built-in method ", "") if file == "~" else f"{Path(file).stem}.{function}"


if __name__ == "__main__":
    count, cpu, table = measure(sorted(Path(sys.argv[1]).glob("*.whl")))
    print(f"{count} files, {cpu:.2f} s of CPU time")
    for name, calls, own in table:
        print(f"{own:7.3f} s {calls:8} calls  {name}")

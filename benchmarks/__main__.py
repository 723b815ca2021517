"""`make bench`: run the benchmarks that the documentation claims, and write benchmarks/RESULTS.md; others (profile,
bytecode, jobs, fleet) keep their sections.

python -m benchmarks [--rounds 3] [--print]
"""

import argparse
import hashlib
import statistics
import sys
import time

from benchmarks import definitions, results
from benchmarks.cold import SCENARIOS, Measured, Ours, measure
from tests.support.session import Session, end


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often each scenario is measured; the median counts")
    parser.add_argument("--print", action="store_true", help="print the results instead of writing RESULTS.md")
    arguments = parser.parse_args()
    session = Session.join()
    session.isolate()
    try:
        sections = [report(measure(session, arguments.rounds), arguments.rounds)]
        sections += definitions.measure(session, arguments.rounds)
    finally:
        for folder in [session.folder, *session.folder.glob("*-[0-9]*")]:
            for path in folder.glob("*.pid"):
                if path.stem.isdigit():
                    end(int(path.stem))
        session.close()
    for section in sections:
        print(section) if arguments.print else results.write(section)
    if not arguments.print:
        print(f"written to {results.RESULTS}")
    return 0


def report(found: dict[str, dict[str, list[Measured]]], rounds: int) -> str:
    lines = [
        "# Benchmark results",
        "",
        f"`make bench`, median of {rounds} rounds. {results.machine()}",
        "",
        "A Debian base with Python, seven packages and what they need, a docker-registry on loopback. Seconds are wall",
        "time of whole processes. *Cold*: nothing cached, wheels downloaded by both. *Empty worker*: the registry has",
        "the earlier image, the machine has nothing. *Peak*: our process and those that convert; Docker's daemon.",
        "",
        "| scenario | tool | seconds | sent, MB | requests | peak, MiB | ratio |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for scenario in SCENARIOS:
        seconds = {name: statistics.median(m.seconds for m in runs) for name, runs in found[scenario].items()}
        theirs = next(value for name, value in seconds.items() if name != Ours.name)
        for name, runs in found[scenario].items():
            last = runs[-1]
            ratio = f"**{seconds[name] / theirs:.2f}**" if name == Ours.name else "1"
            lines.append(
                f"| {scenario} | {name} | {seconds[name]:.2f} | {last.bytes_sent / 1e6:.1f} | {last.requests} "
                f"| {last.peak_mib:.0f} | {ratio} |"
            )
    lines += ["", "Seconds by stage, last round:", ""]
    for scenario in SCENARIOS:
        for name, runs in found[scenario].items():
            stages = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in runs[-1].stages.items())
            lines.append(f"- {scenario}, {name}: {stages}")
    lines += ["", f"This machine's own limits: sha256 {sha256_speed():.0f} MB/s a core.", ""]
    return "\n".join(lines)


def sha256_speed() -> float:
    content = bytes(64 * 1024 * 1024)
    started = time.perf_counter()
    hashlib.sha256(content).hexdigest()
    return len(content) / 1e6 / (time.perf_counter() - started)


if __name__ == "__main__":
    sys.exit(main())

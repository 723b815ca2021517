"""Starts the processes of one node of a job, after its bootstrap script: `starter.py FOLDER NODE`.

All nodes wait for each other's bootstrap at the launcher, which tells them to go on or to give up. The first process
that fails ends the node: nobody is left waiting for it.

Open MPI's mpirun starts the processes of an MPI job of one node where the image has it: a program that uses MPI itself
would else find itself alone. It starts `starter.py FOLDER NODE --process` for each, which finds out who it is.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .ranks import Rank, local_rank, threads_of, variables_of  # noqa: TID251 - the copy in a job is no part of core
from .relay import Relay, say  # noqa: TID251 - the copy in a job is no part of core
from .wire import ChannelError, ask  # noqa: TID251 - the copy in a job is no part of core

PLAN = "plan.json"
TIMED_OUT = 124
"""The exit status of a bootstrap that took too long, as that of timeout(1)."""

_GRACE = 3.0  # seconds between asking a process to end and ending it; less than the launcher gives us
_REST = 1.0  # seconds for what is still in a pipe
_WAIT_FOR_OTHERS = 60.0  # seconds more than a bootstrap may take, for containers to start

_BOOTSTRAP = 'shell=$(command -v bash) || shell=/bin/sh; exec "$shell" "$0"'


class _End(NamedTuple):
    """How a process ended; `process` is `None` for a signal to the starter itself."""

    process: subprocess.Popen[bytes] | None
    rank: Rank | None
    code: int


class Node:
    """One node: its processes, and whoever wants to end them."""

    def __init__(self, folder: str, number: int, plan: Mapping[str, Any]) -> None:
        self._folder, self._plan = folder, plan
        self._number, self._nodes, self._processes = number, int(plan["nodes"]), int(plan["processes"])
        self._ends: queue.SimpleQueue[_End] = queue.SimpleQueue()
        self._alive: list[subprocess.Popen[bytes]] = []
        self._relays: list[Relay] = []
        self._asked = 0
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)

    def run(self) -> int:
        """Bootstrap, wait for the other nodes, run; gives the exit status of the first process that failed."""
        code = self._bootstrap()
        waits = self._nodes > 1 or bool(self._plan["bootstrap"])
        if not self._asked and waits:
            code = self._meet(code)
        if not code and not self._asked:
            code = self._all(self._commands())
        return 128 + self._asked if self._asked else code

    def _bootstrap(self) -> int:
        script = self._plan["bootstrap"]
        if not script:
            return 0
        words = ("/bin/sh", "-c", _BOOTSTRAP, script)
        leaders = self._processes if self._plan["run_on"] == "process" else 1
        limit = float(self._plan["bootstrap_seconds"])
        code = self._all([(self._rank(local), words) for local in range(leaders)], limit)
        if code == TIMED_OUT:
            say(f"[{self._number}]", f"the bootstrap script {script} was stopped after {limit:g} seconds")
        elif code and not self._asked:
            say(f"[{self._number}]", f"the bootstrap script {script} failed with exit status {code}")
        return code

    def _meet(self, code: int) -> int:
        """Tell the launcher how the bootstrap went, and wait until it has heard of all nodes."""
        request = {"do": "ready", "node": self._number, "code": code}
        # in a thread, as a signal handler's work is done between two steps of this one
        answers: list[int] = []
        waiting = threading.Thread(target=lambda: answers.append(self._answer(request)), daemon=True)
        waiting.start()
        while waiting.is_alive() and not self._asked:
            waiting.join(0.05)
        return answers[0] if answers else code

    def _answer(self, request: dict[str, Any]) -> int:
        try:
            answer = ask(self._folder, request, float(self._plan["bootstrap_seconds"]) + 2 * _WAIT_FOR_OTHERS)
        except ChannelError as error:
            say(f"[{self._number}]", f"the nodes could not be brought together: {error}")
            return 1
        if "failed" not in answer:
            return 0
        node, code = answer["failed"]
        if node != self._number:
            say(f"[{self._number}]", f"is not started: the bootstrap failed on node {node} with exit status {code}")
        return int(code)

    def _commands(self) -> list[tuple[Rank | None, Sequence[str]]]:
        command = self._plan["command"]
        if mpirun := self._mpirun():
            say(f"[{self._number}]", f"{mpirun} starts the processes")
            options = ["-np", str(self._processes), "--oversubscribe", "--bind-to", "none"]
            options += ["--allow-run-as-root"] if os.getuid() == 0 else []
            return [(None, [mpirun, *options, *self._plan["starter"], str(self._number), "--process"])]
        return [(self._rank(local), command) for local in range(self._processes)]

    def _mpirun(self) -> str | None:
        if self._plan["kind"] != "mpi":
            return None
        found = shutil.which("mpirun")
        if found and self._nodes > 1:
            say(f"[{self._number}]", "mpirun is for one node: a program that uses MPI itself finds each process alone")
            return None
        try:
            told = subprocess.run([found, "--version"], capture_output=True, check=False).stdout if found else b""
        except OSError:
            return None
        return found if b"Open MPI" in told else None

    def _rank(self, local: int) -> Rank:
        return Rank(self._number, local, self._nodes, self._processes)

    def _all(self, commands: Sequence[tuple[Rank | None, Sequence[str]]], limit: float | None = None) -> int:
        """Run all at once to their ends, at most `limit` seconds; the first that fails ends the others."""
        deadline = None if limit is None else time.monotonic() + limit
        code = 0
        for rank, words in commands:
            code = code or self._start(rank, words)
        while self._alive and not code:
            try:
                end = self._ends.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                code = TIMED_OUT
                break
            code = end.code
            if end.process is None:
                break
            self._alive.remove(end.process)
            if code and len(commands) > 1:
                say(str(end.rank), f"ended with exit status {code}; the other processes of the node are stopped")
        self._stop()
        return code

    def _start(self, rank: Rank | None, words: Sequence[str]) -> int:
        environment = dict(os.environ)
        if rank is not None:
            environment.update(threads_of(rank, environment))
            environment.update(variables_of(rank, self._plan))
        else:  # what mpirun itself finds on a machine without a network or a list of users
            environment.setdefault("OMPI_MCA_btl_vader_single_copy_mechanism", "none")
        try:
            process = subprocess.Popen(
                words, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        except OSError as error:
            say(str(rank), f"{words[0]} cannot be started: {error.strerror}")
            return 127 if isinstance(error, FileNotFoundError) else 126
        assert process.stdout is not None  # noqa: S101
        # mpirun's processes say themselves who they are
        relay = Relay(process.stdout, str(rank) if rank else "")
        relay.start()
        self._relays.append(relay)
        self._alive.append(process)
        threading.Thread(target=self._watch, args=(process, rank), daemon=True).start()
        return 0

    def _watch(self, process: subprocess.Popen[bytes], rank: Rank | None) -> None:
        code = process.wait()
        self._ends.put(_End(process, rank, code if code >= 0 else 128 - code))

    def _on_signal(self, number: int, frame: object) -> None:
        if self._asked:
            return
        self._asked = number
        self._ends.put(_End(None, None, 128 + number))

    def _stop(self) -> None:
        """Ask those who are left to end, with all that they started, and end them after some seconds."""
        if self._alive and not (self._asked and self._plan["grouped"]):  # then all of the group were asked already
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.killpg(0, signal.SIGTERM)
        deadline = time.monotonic() + _GRACE
        for process in self._alive:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
        deadline = time.monotonic() + _REST  # what a process left running may hold its pipe open
        for relay in self._relays:
            relay.join(max(0.0, deadline - time.monotonic()))
        self._alive, self._relays = [], []


def process(node: int, plan: Mapping[str, Any]) -> int:
    """Become one process of a node that mpirun started, and end when mpirun does."""
    rank = Rank(node, local_rank(os.environ), int(plan["nodes"]), int(plan["processes"]))
    ours = {name: value for name, value in variables_of(rank, plan).items() if not name.startswith("OMPI_")}
    environment = {**threads_of(rank, os.environ), **os.environ, **ours}
    parent = os.getppid()
    try:
        child = subprocess.Popen(plan["command"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except OSError as error:
        say(str(rank), f"{plan['command'][0]} cannot be started: {error.strerror}")
        return 127 if isinstance(error, FileNotFoundError) else 126
    assert child.stdout is not None  # noqa: S101
    relay = Relay(child.stdout, str(rank))
    relay.start()
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    while True:
        try:
            code = child.wait(0.5)
            break
        except subprocess.TimeoutExpired:
            if os.getppid() != parent:  # mpirun was killed, and could not end us
                child.kill()
    relay.join(_REST)
    return code if code >= 0 else 128 - code


def main(arguments: Sequence[str]) -> int:
    folder, node = arguments[0], int(arguments[1])
    with open(os.path.join(folder, PLAN), encoding="utf-8") as file:  # noqa: PTH118, PTH123
        plan = json.load(file)
    return process(node, plan) if "--process" in arguments else Node(folder, node, plan).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

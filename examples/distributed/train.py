"""Several processes agree on a number: each brings its own, and all end with the mean of all.

With PyTorch in the environment it is an all-reduce; without it the processes pass their numbers round a ring of
sockets. Needs no GPU. Run by itself (`python train.py`) it is a world of one.
"""

import os
import socket
import struct
import time

from prefect_environments import Run

RANK, WORLD = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
MASTER = os.environ.get("MASTER_ADDR", "127.0.0.1"), int(os.environ.get("MASTER_PORT", "29500"))
PATIENCE = 60.0  # seconds


def connect(address: tuple[str, int]) -> socket.socket:
    """A connection to a process that may not listen yet."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return socket.create_connection(address, timeout=PATIENCE)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def addresses(own: tuple[str, int]) -> list[tuple[str, int]]:
    """Where each process listens: all tell the first one, which tells all."""
    if RANK:
        with connect(MASTER) as line, line.makefile("rw", encoding="utf-8") as text:
            own = line.getsockname()[0], own[1]
            print(RANK, *own, file=text, flush=True)
            return [(host, int(port)) for host, port in (row.split() for row in text)]
    known, lines = {0: (MASTER[0], own[1])}, []
    with socket.create_server(("", MASTER[1])) as server:
        server.settimeout(PATIENCE)
        while len(known) < WORLD:
            line, _ = server.accept()
            text = line.makefile("rw", encoding="utf-8")
            rank, host, port = text.readline().split()
            known[int(rank)] = host, int(port)
            lines.append((line, text))
    found = [known[rank] for rank in range(WORLD)]
    for line, text in lines:
        text.writelines(f"{host} {port}\n" for host, port in found)
        text.close()
        line.close()
    return found


def ring_sum(value: float) -> float:
    """The sum over all processes: each hands on what it gets to the next one, once round."""
    with socket.create_server(("", 0)) as server:
        server.settimeout(PATIENCE)
        everybody = addresses(("", server.getsockname()[1]))
        following = connect(everybody[(RANK + 1) % WORLD])
        preceding, _ = server.accept()
        total = passed = value
        with following, preceding:
            preceding.settimeout(PATIENCE)
            for _ in range(WORLD - 1):
                following.sendall(struct.pack("!d", passed))
                (passed,) = struct.unpack("!d", preceding.recv(8, socket.MSG_WAITALL))
                total += passed
        return total


def torch_sum(value: float) -> float:
    """The same, by PyTorch; raises `ImportError` without it."""
    import torch  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415
    import torch.distributed as dist  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415

    dist.init_process_group("gloo", rank=RANK, world_size=WORLD, init_method=f"tcp://{MASTER[0]}:{MASTER[1]}")
    total = torch.tensor([value], dtype=torch.float64)
    dist.all_reduce(total)
    dist.destroy_process_group()
    return float(total)


def main() -> None:
    own = float(RANK + 1)
    try:
        total, way = torch_sum(own), "torch"
    except ImportError:
        total, way = ring_sum(own), "a ring of sockets"
    print(f"process {RANK} of {WORLD} brought {own:g}; the mean of all is {total / WORLD:g}, by {way}")
    if RANK == 0:
        Run.get_context().log("mean", total / WORLD)


if __name__ == "__main__":
    main()

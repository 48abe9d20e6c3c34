"""A round without compute: the link's broadcast and average against the same bytes by bare MPI and
by torch's gloo.

    mpirun -n 5 python benchmarks/communication.py                    # the 64-pixel pair
    mpirun -n 33 python benchmarks/communication.py --parameters 134000 --gloo false

All three move [θ | φ] down and add up φ, in blocks that alternate within one run; ratios are taken
block by block. CPU seconds are those of all ranks together, waiting included.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable

import numpy as np
import torch
from mpi4py import MPI

import fedgan_mpi.training.environment  # noqa: F401 - before numpy and torch are loaded
from fedgan_mpi.comm.link import Link

PAIR_OF_64_PIXELS = 3_576_704, 2_765_568  # |G|, |D|


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parameters", type=int, default=None, help="|G| + |D|, with |D| = 44 %%")
    parser.add_argument("--transport", choices=["mpi", "polling", "shared_memory"], default=None)
    parser.add_argument("--gloo", choices=["true", "false"], default="true")
    parser.add_argument("--blocks", type=int, default=9)
    parser.add_argument("--rounds", type=int, default=5, help="in a block")
    args = parser.parse_args()
    torch.set_num_threads(1)
    theta, phi = PAIR_OF_64_PIXELS
    if args.parameters is not None:
        phi = round(0.44 * args.parameters)
        theta = args.parameters - phi

    link = Link(transport=args.transport)
    roads: dict[str, Callable[[], None]] = {
        "link": by_link(link, theta, phi),
        "mpi": by_bare_mpi(theta, phi),
    }
    if args.gloo == "true":
        roads["gloo"] = by_gloo(theta, phi)
    seconds: dict[str, list[float]] = {name: [] for name in roads}
    cpu: dict[str, list[float]] = {name: [] for name in roads}
    for block in range(args.blocks + 1):
        for name, play in roads.items():
            link.barrier()
            start, began = time.perf_counter(), time.process_time()
            for _ in range(args.rounds):
                play()
            link.barrier()
            spent = link.sum(np.array([time.process_time() - began]))[0]
            if block > 0:  # the first warms up
                seconds[name].append((time.perf_counter() - start) / args.rounds)
                cpu[name].append(spent / args.rounds)
    if link.is_server:
        print(
            json.dumps(
                {
                    "benchmark": "communication-only round",
                    "ranks": link.size,
                    "parameters": theta + phi,
                    **{f"link / {name}": ratio(seconds, name) for name in list(roads)[1:]},
                    "ms": {name: ms(values) for name, values in seconds.items()},
                    "cpu_ms": {name: ms(values) for name, values in cpu.items()},
                    "transport": link.transport,
                    "mpi": link.library(),
                    "cores": link.cores_here,
                }
            ),
            flush=True,
        )
    if args.gloo == "true":
        torch.distributed.destroy_process_group()


def by_link(link: Link, theta: int, phi: int) -> Callable[[], None]:
    gan = torch.ones(theta + phi)
    uplink = link.rows(1, gan[theta:])
    if not link.is_server:
        uplink.fill_(1.0)

    def play() -> None:
        link.broadcast(gan)
        link.average(uplink, into=gan[theta:])

    return play


def by_bare_mpi(theta: int, phi: int) -> Callable[[], None]:
    comm = MPI.COMM_WORLD.Dup()
    gan, total = np.ones(theta + phi, np.float32), np.empty(phi, np.float32)
    uplink = np.full(phi, comm.rank > 0, np.float32)

    def play() -> None:
        comm.Bcast(gan, root=0)
        comm.Reduce(uplink, total if comm.rank == 0 else None, MPI.SUM, root=0)

    return play


def by_gloo(theta: int, phi: int) -> Callable[[], None]:
    import torch.distributed as gloo

    comm = MPI.COMM_WORLD
    meeting = comm.bcast(tempfile.mktemp(prefix="fedgan_mpi-gloo-"))
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    gloo.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=comm.rank, world_size=comm.size
    )
    gan, uplink = torch.ones(theta + phi), torch.ones(phi)

    def play() -> None:
        gloo.broadcast(gan, 0)
        uplink.fill_(float(comm.rank > 0))
        gloo.reduce(uplink, 0)

    return play


def ratio(seconds: dict[str, list[float]], other: str) -> list[float]:
    """[median, least, greatest] of the blocks' ratios."""
    ratios = [a / b for a, b in zip(seconds["link"], seconds[other], strict=True)]
    return [round(f(ratios), 3) for f in (statistics.median, min, max)]


def ms(values: list[float]) -> float:
    return round(1e3 * statistics.median(values), 2)


if __name__ == "__main__":
    main()

"""Measures the communication of a round: the link against bare MPI and torch's gloo.

    mpirun -n 5 python benchmarks/communication.py                    # the DCGAN for 64 pixels
    mpirun -n 33 python benchmarks/communication.py --parameters 134000 --gloo false

Each backend broadcasts [θ | φ] and sums φ at the server, without computation. Blocks of the
backends alternate in one run, and each block gives a ratio. CPU milliseconds are the sum over
ranks, waiting included. Prints JSON.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable

import common
import numpy as np
import torch
from mpi4py import MPI

from fedgan_mpi.comm.link import Link


def main() -> None:
    parser = common.make_parser(__doc__)
    parser.add_argument("--parameters", type=int, default=None, help="|G| + |D|, with |D| = 44 %%")
    parser.add_argument("--transport", choices=["mpi", "polling", "shared_memory"], default=None)
    parser.add_argument("--gloo", choices=["true", "false"], default="true")
    parser.add_argument("--blocks", type=int, default=9)
    parser.add_argument("--rounds", type=int, default=5, help="rounds per block")
    args = parser.parse_args()
    torch.set_num_threads(1)
    theta, phi = common.PARAMETERS_G, common.PARAMETERS_D
    if args.parameters is not None:
        phi = round(0.44 * args.parameters)
        theta = args.parameters - phi

    link = Link(transport=args.transport)
    backends: dict[str, Callable[[], None]] = {
        "link": link_round(link, theta, phi),
        "mpi": mpi_round(theta, phi),
    }
    if args.gloo == "true":
        backends["gloo"] = gloo_round(theta, phi)
    seconds: dict[str, list[float]] = {name: [] for name in backends}
    cpu: dict[str, list[float]] = {name: [] for name in backends}
    for block in range(args.blocks + 1):
        for name, run_round in backends.items():
            link.barrier()
            start, cpu_start = time.perf_counter(), time.process_time()
            for _ in range(args.rounds):
                run_round()
            link.barrier()
            cpu_seconds = link.sum(np.array([time.process_time() - cpu_start]))[0]
            if block > 0:  # block 0 warms up
                seconds[name].append((time.perf_counter() - start) / args.rounds)
                cpu[name].append(cpu_seconds / args.rounds)
    if link.is_server:
        others = list(backends)[1:]
        common.print_json(
            {
                "benchmark": "communication-only round",
                "ranks": link.size,
                "parameters": theta + phi,
                **{
                    f"link / {name}": common.ratio_summary(seconds["link"], seconds[name])
                    for name in others
                },
                "ms": {name: common.median_ms(values) for name, values in seconds.items()},
                "cpu_ms": {name: common.median_ms(values) for name, values in cpu.items()},
                "transport": link.transport,
                "mpi": link.library(),
                "cores": link.local_cores,
            }
        )
    if args.gloo == "true":
        torch.distributed.destroy_process_group()


def link_round(link: Link, theta: int, phi: int) -> Callable[[], None]:
    gan = torch.ones(theta + phi)
    uplink = link.rows(1, gan[theta:])
    if not link.is_server:
        uplink.fill_(1.0)

    def run_round() -> None:
        link.broadcast(gan)
        link.reduce(uplink, into=gan[theta:])

    return run_round


def mpi_round(theta: int, phi: int) -> Callable[[], None]:
    comm = MPI.COMM_WORLD.Dup()
    gan, total = np.ones(theta + phi, np.float32), np.empty(phi, np.float32)
    uplink = np.full(phi, comm.rank > 0, np.float32)

    def run_round() -> None:
        comm.Bcast(gan, root=0)
        comm.Reduce(uplink, total if comm.rank == 0 else None, MPI.SUM, root=0)

    return run_round


def gloo_round(theta: int, phi: int) -> Callable[[], None]:
    import torch.distributed as gloo

    comm = MPI.COMM_WORLD
    rendezvous = comm.bcast(tempfile.mktemp(prefix="fedgan_mpi-gloo-"))
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    gloo.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=comm.rank, world_size=comm.size
    )
    gan, uplink = torch.ones(theta + phi), torch.ones(phi)

    def run_round() -> None:
        gloo.broadcast(gan, 0)
        uplink.fill_(float(comm.rank > 0))
        gloo.reduce(uplink, 0)

    return run_round


if __name__ == "__main__":
    main()

"""Measures the aggregation rules, which need a vector per participant, against the mean.

    mpirun -n 33 python benchmarks/rows.py            # the DCGAN for 64 pixels, a device a rank

A round broadcasts (θ, φ), and the server combines the devices' φ; nothing is trained. Rounds of the
rules alternate in one run, and each gives a ratio to `mean`. `server_mib` is the peak memory of the
server for an uplink and its first round. Prints JSON.
"""

from __future__ import annotations

import time
from pathlib import Path

import common
import torch

from fedgan_mpi.algorithms.aggregation.build import make_uplink
from fedgan_mpi.algorithms.aggregation.uplink import Uplink
from fedgan_mpi.algorithms.local_metrics import LocalMetrics
from fedgan_mpi.comm.link import Link
from fedgan_mpi.config import AggregationConfig, AlgorithmConfig, Config
from fedgan_mpi.federation.networks import build_networks
from fedgan_mpi.federation.rank import RankState

RULES: dict[str, AggregationConfig] = {
    "mean": AggregationConfig(),
    "median": AggregationConfig(rule="median"),
    "trimmed_mean": AggregationConfig(rule="trimmed_mean", options={"trim": 2}),
    "multi_krum": AggregationConfig(rule="multi_krum", options={"faulty": 2}),
    "geometric_median": AggregationConfig(rule="geometric_median"),
    "top_k": AggregationConfig(compression="top_k"),
    "qsgd": AggregationConfig(compression="qsgd"),
}


def main() -> None:
    parser = common.make_parser(__doc__)
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--size", type=int, default=64, help="pixels")
    args = parser.parse_args()
    torch.set_num_threads(1)
    link = Link()
    shape = (3, args.size, args.size)
    base = Config(algorithm=AlgorithmConfig(batchnorm="local"))
    link.configure(base.link)
    shard = common.noise_shard(shape, 1)
    algorithm = common.build_algorithm(link, base, build_networks(base, shape), shard)
    rank_state = algorithm.rank_state
    play(rank_state, make_uplink(rank_state, algorithm.flat.discriminator), 0)  # warms up
    seconds: dict[str, list[float]] = {name: [] for name in args.rules}
    memory = {}
    uplinks: dict[str, Uplink] = {}
    for name in args.rules:
        aggregation, before = RULES[name], reset_peak()
        rank_state.config = Config(algorithm=base.algorithm, aggregation=aggregation)
        uplinks[name] = make_uplink(rank_state, algorithm.flat.discriminator)
        play(rank_state, uplinks[name], 0)
        memory[name] = peak("VmHWM") - before
    for block in range(1, args.blocks + 1):
        for name, uplink in uplinks.items():
            link.barrier()
            start = time.perf_counter()
            play(rank_state, uplink, block)
            link.barrier()
            seconds[name].append(time.perf_counter() - start)
    if link.is_server:
        common.print_json(
            {
                "benchmark": "rules / mean",
                "ranks": link.size,
                "parameters": sum(len(each) for each in (algorithm.flat.theta, algorithm.flat.phi)),
                "vector_mib": round(algorithm.flat.discriminator.nbytes / 2**20, 1),
                **{
                    f"{name} / mean": common.ratio_summary(seconds[name], seconds["mean"])
                    for name in args.rules
                    if name != "mean"
                },
                "ms": {name: common.median_ms(values) for name, values in seconds.items()},
                "server_mib": {name: round(value, 1) for name, value in memory.items()},
                "transport": link.transport,
                "cores": link.local_cores,
            }
        )


def play(rank_state: RankState, uplink: Uplink, t: int) -> None:
    """Run a round without training: each device changes its φ."""
    link, flat = rank_state.link, rank_state.pair.flat
    link.broadcast(flat.gan)
    uplink.begin(t)
    share = 1 / rank_state.participation.devices
    for device in rank_state.devices:
        uplink.restore_received()
        flat.discriminator.mul_(1 + device.index * 1e-3).add_(1e-3)
        uplink.add(device, share, LocalMetrics())
    link.average(uplink, into=flat.discriminator)


def reset_peak() -> float:
    """Forget the process's peak memory; return its present memory in MiB."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak("VmRSS")


def peak(key: str) -> float:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if key in line) / 1024


if __name__ == "__main__":
    main()

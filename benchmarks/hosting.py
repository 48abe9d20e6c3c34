"""Measures the memory of a hosted device on its rank, with shards on disk.

    mpirun -n 2 python benchmarks/hosting.py [--devices 100]

A rank hosts 5 devices, then many, each with a shard of 500 images of 32 pixels, and runs a round
with each number. Prints JSON in KiB: the growth of resident memory per added device, its optimizer
moments and its shard.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import common
import numpy as np

from fedgan_mpi.algorithms.base import Algorithm
from fedgan_mpi.algorithms.registry import ALGORITHMS
from fedgan_mpi.comm.link import Link
from fedgan_mpi.config import Config
from fedgan_mpi.data import read_shard, write_shard
from fedgan_mpi.data.loading import hosted_devices
from fedgan_mpi.federation.networks import NetworkPair, build_networks
from fedgan_mpi.federation.rank import build_rank_state
from fedgan_mpi.hardware.placement import set_threads

SHAPE, IMAGES, FEW = (3, 32, 32), 500, 5


def main() -> None:
    parser = common.make_parser(__doc__)
    parser.add_argument("--devices", type=int, default=100)
    args = parser.parse_args()
    link = Link()
    config = Config()
    config = replace(config, model=replace(config.model, width=32))
    link.configure(config.link)
    set_threads(config, cores=link.local_cores, ranks=link.local_size)
    pair = build_networks(config, SHAPE)
    directory = link.from_server(lambda: Path(tempfile.mkdtemp(prefix="fedgan_mpi-hosting-")))
    algorithms, resident, seconds = [], [], []
    for devices in (FEW, args.devices):
        algorithm = build_hosting_algorithm(link, config, pair, directory, devices)
        start = time.perf_counter()
        common.Rounds(algorithm).run()
        seconds.append((time.perf_counter() - start) / devices)
        algorithms.append(algorithm)  # stays in memory for the next measurement
        nbytes = np.zeros(link.size)
        nbytes[link.rank] = resident_bytes()
        resident.append(link.sum(nbytes)[1:].max())
    if link.is_server:
        hosted = -(-args.devices // link.device_ranks)
        result = {
            "benchmark": "a hosted device, KiB",
            "growth": round((resident[1] - resident[0]) / hosted / 1024, 1),
            "moments": round(2 * pair.flat.phi.nbytes / 1024, 1),
            "shard": round(IMAGES * np.prod(SHAPE) / 1024, 1),
            "ms_per_device_few": round(1e3 * seconds[0], 1),
            "ms_per_device_many": round(1e3 * seconds[1], 1),
            "devices": args.devices,
            "ranks": link.size,
        }
        common.print_json(result)
    link.barrier()
    for path in directory.glob("*.h5") if link.is_server else ():
        path.unlink()
    if link.is_server:
        directory.rmdir()


def build_hosting_algorithm(
    link: Link, config: Config, pair: NetworkPair, directory: Path, devices: int
) -> Algorithm:
    """Write this rank's shards and return its part of the algorithm."""
    shards = {}
    for k in hosted_devices(devices, link.rank, link.device_ranks):
        path = directory / f"device_{k:04d}.h5"
        stream = np.random.default_rng(k)
        pixels = stream.integers(0, 256, (IMAGES, *SHAPE), dtype=np.uint8)
        write_shard(path, pixels, None, np.arange(IMAGES), {})
        shards[k] = read_shard(path, image_shape=SHAPE, in_memory=False)
    rank_state = build_rank_state(link, config, pair, shards, [IMAGES] * devices)
    return ALGORITHMS["ren"](rank_state)


def resident_bytes() -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))


if __name__ == "__main__":
    main()

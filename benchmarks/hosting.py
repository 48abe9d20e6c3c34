"""What a hosted device costs its rank: memory beside its moments, with shards left on disk.

    mpirun -n 2 python benchmarks/hosting.py [--devices 100]

One rank hosts a few devices, then so many more, each with a shard of 500 images of 32 pixels, and
plays a round with all of them. Prints what resident memory grew by for a further device, beside its
moments and its shard.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

import fedgan_mpi.training.environment  # noqa: F401 - before numpy and torch are loaded
from fedgan_mpi.algorithms import ALGORITHMS
from fedgan_mpi.algorithms.base import Algorithm
from fedgan_mpi.comm.link import Link
from fedgan_mpi.config import Config
from fedgan_mpi.data import read_shard, write_shard
from fedgan_mpi.data.loading import hosted_devices
from fedgan_mpi.federation.networks import NetworkPair, build_networks
from fedgan_mpi.federation.rank import build_rank_state
from fedgan_mpi.hardware.placement import set_threads
from fedgan_mpi.training.loop import run_round
from fedgan_mpi.training.state import TrainState

SHAPE, IMAGES, FEW = (3, 32, 32), 500, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=100)
    args = parser.parse_args()
    link = Link()
    config = Config()
    config = replace(config, model=replace(config.model, width=32))
    link.configure(config.link)
    set_threads(config, link)
    pair = build_networks(config, SHAPE)
    directory = link.from_server(lambda: Path(tempfile.mkdtemp(prefix="fedgan_mpi-hosting-")))
    kept, resident, seconds = [], [], []
    for devices in (FEW, args.devices):
        algorithm = hosting(link, config, pair, directory, devices)
        start = time.perf_counter()
        run_round(algorithm, 0, TrainState())
        seconds.append((time.perf_counter() - start) / devices)
        kept.append(algorithm)
        grown = np.zeros(link.size)
        grown[link.rank] = resident_bytes()
        resident.append(link.sum(grown)[1:].max())
    if link.is_server:
        hosted = -(-args.devices // link.device_ranks)
        result = {
            "benchmark": "a hosted device, KiB",
            "grown": round((resident[1] - resident[0]) / hosted / 1024, 1),
            "moments": round(2 * pair.flat.phi.nbytes / 1024, 1),
            "shard": round(IMAGES * np.prod(SHAPE) / 1024, 1),
            "ms_a_device_few": round(1e3 * seconds[0], 1),
            "ms_a_device_many": round(1e3 * seconds[1], 1),
            "devices": args.devices,
            "ranks": link.size,
        }
        print(json.dumps(result))
    link.barrier()
    for path in directory.glob("*.h5") if link.is_server else ():
        path.unlink()
    if link.is_server:
        directory.rmdir()


def hosting(
    link: Link, config: Config, pair: NetworkPair, directory: Path, devices: int
) -> Algorithm:
    shards = {}
    for k in hosted_devices(devices, link):
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

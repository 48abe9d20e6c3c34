"""A device rank's memory beside what importing torch alone takes.

    mpirun -n 9 python benchmarks/memory.py

Prints the largest device rank's peak resident size after rounds of the default networks, torch's
own in a fresh process, and the difference less vectors, moments and shard: what the program itself
costs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

import fedgan_mpi.training.environment  # noqa: F401 - before numpy and torch are loaded
from fedgan_mpi.algorithms import ALGORITHMS
from fedgan_mpi.comm.link import Link
from fedgan_mpi.config import Config
from fedgan_mpi.data import Shard
from fedgan_mpi.data.loading import hosted_devices
from fedgan_mpi.federation.networks import build_networks
from fedgan_mpi.federation.rank import build_rank_state
from fedgan_mpi.training.loop import run_round
from fedgan_mpi.training.state import TrainState

# Not getrusage: a child's peak there begins with that of the process that forked it.
PEAK = "print(next(line.split()[1] for line in open('/proc/self/status') if 'VmHWM' in line))"


def main() -> None:
    link = Link()
    config = Config()
    link.configure(config.link)
    shape, images = (1, 16, 16), 180
    pixels = np.zeros((images, *shape), np.uint8)
    shard = Shard(path=Path("zeros"), images=pixels, labels=None, sha256="")
    shards = {k: shard for k in hosted_devices(link.device_ranks, link)}
    pair = build_networks(config, shape)
    rank_state = build_rank_state(link, config, pair, shards, [images] * link.device_ranks)
    algorithm = ALGORITHMS["ren"](rank_state)
    progress = TrainState()
    for t in range(10):
        run_round(algorithm, t, progress)
    peaks = np.zeros(link.size)
    status = Path("/proc/self/status").read_text().splitlines()
    peaks[link.rank] = next(int(line.split()[1]) for line in status if "VmHWM" in line) / 1024
    peak = float(link.sum(peaks)[1:].max())

    def torch_alone() -> float:
        command = [sys.executable, "-c", "import torch\n" + PEAK]
        return (
            int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) / 1024
        )

    alone = link.from_server(torch_alone)
    vectors = 3 * pair.flat.vector.nbytes / 2**20
    moments = 2 * pair.flat.phi.nbytes / 2**20
    if link.is_server:
        result = {
            "benchmark": "memory of a device rank, MiB",
            "peak": round(peak, 1),
            "torch_alone": round(alone, 1),
            "three_vectors": round(vectors, 1),
            "moments": round(moments, 1),
            "rest": round(peak - alone - vectors - moments - pixels.nbytes / 2**20, 1),
            "ranks": link.size,
            "mpi": link.library(),
        }
        print(json.dumps(result))


if __name__ == "__main__":
    main()

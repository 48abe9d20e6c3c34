"""Measures the peak memory of a device rank, and the memory of `import torch` alone.

    mpirun -n 9 python benchmarks/memory.py

Trains the default networks for ten rounds. Prints JSON in MiB: the largest peak of a device rank,
and the peak of a new process that imports torch. The rest is the difference of both, without
vectors, moments and shard.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import common
import numpy as np

from fedgan_mpi.comm.link import Link
from fedgan_mpi.config import Config
from fedgan_mpi.data import Shard
from fedgan_mpi.federation.networks import build_networks

# getrusage would count the peak of the parent before the fork, too.
PRINT_PEAK = """
import torch
print(next(line.split()[1] for line in open("/proc/self/status") if "VmHWM" in line))
"""


def main() -> None:
    link = Link()
    config = Config()
    link.configure(config.link)
    shape, images = (1, 16, 16), 180
    pixels = np.zeros((images, *shape), np.uint8)
    labels = np.zeros(images, np.int64)
    shard = Shard(path=Path("zeros"), images=pixels, labels=labels, sha256="")
    pair = build_networks(config, shape)
    algorithm = common.build_algorithm(link, config, pair, shard)
    rounds = common.Rounds(algorithm)
    for _ in range(10):
        rounds.run()
    peaks = np.zeros(link.size)
    status = Path("/proc/self/status").read_text().splitlines()
    peaks[link.rank] = next(int(line.split()[1]) for line in status if "VmHWM" in line) / 1024
    peak = float(link.sum(peaks)[1:].max())
    torch_alone = link.from_server(peak_of_torch)
    vectors = 3 * pair.flat.vector.nbytes / 2**20
    moments = 2 * pair.flat.phi.nbytes / 2**20
    if link.is_server:
        result = {
            "benchmark": "memory of a device rank, MiB",
            "peak": round(peak, 1),
            "torch_alone": round(torch_alone, 1),
            "three_vectors": round(vectors, 1),
            "moments": round(moments, 1),
            "rest": round(peak - torch_alone - vectors - moments - pixels.nbytes / 2**20, 1),
            "ranks": link.size,
            "mpi": link.library(),
        }
        common.print_json(result)


def peak_of_torch() -> float:
    """Return the peak memory in MiB of a process that imports torch."""
    command = [sys.executable, "-c", PRINT_PEAK]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout) / 1024


if __name__ == "__main__":
    main()

"""Parts of several benchmarks: random shards, the algorithm of a job, summaries and JSON output.

Import this module before numpy and torch: like a job, it sets variables that both read.
"""

from __future__ import annotations

import fedgan_mpi.training.environment  # noqa: F401 # isort: skip

import argparse
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedgan_mpi.testing.jobs import MPIRUN

if TYPE_CHECKING:
    from fedgan_mpi.algorithms.base import Algorithm
    from fedgan_mpi.comm.link import Link
    from fedgan_mpi.config import Config
    from fedgan_mpi.data import Shard
    from fedgan_mpi.federation.device import Device
    from fedgan_mpi.federation.networks import NetworkPair
    from fedgan_mpi.federation.server import Server

PARAMETERS_G, PARAMETERS_D = 3_576_704, 2_765_568
"""Parameters of the DCGAN for 64 pixels."""


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help keeps the lines of the description."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def noise_shard(shape: tuple[int, int, int], images: int, seed: int = 0) -> Shard:
    """Return a shard of random pixels of shape (C, H, W), with labels of ten classes."""
    from fedgan_mpi.data import Shard

    stream = np.random.default_rng(seed)
    pixels = stream.integers(0, 256, (images, *shape), dtype=np.uint8)
    labels = stream.integers(0, 10, images)
    return Shard(path=Path("noise"), images=pixels, labels=labels, sha256="")


def device_and_server(
    args: argparse.Namespace, options: Mapping[str, Any]
) -> tuple[Device, Server]:
    """Return a device and a server in one process, which take steps on random images on the CPU.

    args: batch, width, channels and size. options: of training.
    """
    from fedgan_mpi.config import Config, choose_by_size
    from fedgan_mpi.data import Batches
    from fedgan_mpi.federation.device import Device
    from fedgan_mpi.federation.networks import build_networks
    from fedgan_mpi.federation.server import Server

    config = Config()
    training = replace(
        config.training,
        batch_size=args.batch,
        generator_batch_size=args.batch,
        discriminator_steps=1,
        generator_steps=1,
        device="cpu",
        **options,
    )
    shape = (args.channels, args.size, args.size)
    config = replace(config, training=training, model=replace(config.model, width=args.width))
    config = choose_by_size(config, shape)
    pair = build_networks(config, shape)
    shard = noise_shard(shape, 4 * args.batch)
    batches = Batches(shard, batch_size=args.batch, seed=0, device=1)
    return Device(1, batches, pair, config), Server(pair, config)


def build_algorithm(link: Link, config: Config, pair: NetworkPair, shard: Shard) -> Algorithm:
    """Return this rank's part of the configured algorithm: one device per device rank, all with
    the same shard."""
    from fedgan_mpi.algorithms.registry import ALGORITHMS
    from fedgan_mpi.data.loading import hosted_devices
    from fedgan_mpi.federation.rank import build_rank_state

    devices = link.device_ranks
    shards = {k: shard for k in hosted_devices(devices, link.rank, link.device_ranks)}
    histograms = [np.bincount(np.asarray(shard.labels), minlength=10).tolist()] * devices
    images = [len(shard)] * devices
    rank_state = build_rank_state(link, config, pair, shards, images, histograms)
    return ALGORITHMS[config.algorithm.name](rank_state)


class Rounds:
    """Runs the rounds of an algorithm, with early starts, as a job does."""

    def __init__(self, algorithm: Algorithm) -> None:
        from fedgan_mpi.training.overlap import Overlap
        from fedgan_mpi.training.state import TrainState

        self.algorithm, self.overlap, self.state = algorithm, Overlap(algorithm), TrainState()
        self.t = 0

    def run(self) -> dict[str, Any]:
        """Run the next round and return its line of `stats.jsonl`. Collective."""
        from fedgan_mpi.training.loop import run_round

        start_next = partial(self.overlap.start_device, self.t + 1)
        line = run_round(self.algorithm, self.t, self.state, overlap=start_next)
        self.t += 1
        return line


def mpirun(ranks: int, *command: str) -> list[str]:
    """Return the command line that runs `command` on several ranks."""
    return [MPIRUN, "-n", str(ranks), *command]


def summary(values: Iterable[float], digits: int = 3) -> dict[str, float]:
    """Return the median, the minimum and the maximum."""
    values = list(values)
    numbers = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(number, digits) for name, number in numbers.items()}


def ratio_summary(
    values: Sequence[float], references: Sequence[float], digits: int = 3
) -> dict[str, float]:
    """Return the summary of value / reference over the blocks of a run."""
    return summary((a / b for a, b in zip(values, references, strict=True)), digits)


def median_ms(seconds: Iterable[float], digits: int = 2) -> float:
    """Return the median in milliseconds."""
    return round(1e3 * statistics.median(seconds), digits)


def print_json(result: Mapping[str, Any]) -> None:
    """Print a result on one line."""
    print(json.dumps(result), flush=True)

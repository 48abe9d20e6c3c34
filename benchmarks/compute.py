"""Local steps in bfloat16 and channels_last against plain float32, on one thread of a CPU.

    python benchmarks/compute.py --size 32
    python benchmarks/compute.py --size 64 --batch 32 --blocks 5

Steps of D (on a real batch and one of fakes, which G makes) and of G, as devices and the server
take them. All ways alternate in blocks of one run, and ratios are taken in each block, since
machines are noisy. Prints JSON: images a second of each way against those of plain float32.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fedgan_mpi.training.environment  # noqa: F401 - before numpy and torch are loaded
from fedgan_mpi.config import Config
from fedgan_mpi.data import Batches, Shard
from fedgan_mpi.federation.device import Device
from fedgan_mpi.federation.networks import build_networks
from fedgan_mpi.federation.server import Server
from fedgan_mpi.hardware.cpu import multiplies_bfloat16

WAYS: dict[str, dict[str, Any]] = {
    "float32": {},
    "float32, channels_last": {"memory_format": "channels_last"},
    "bfloat16": {"autocast": "bfloat16"},
    "bfloat16, channels_last": {"autocast": "bfloat16", "memory_format": "channels_last"},
}


class Way:
    """A device and a server in one process, computing in one of the ways."""

    def __init__(self, options: dict[str, Any], args: argparse.Namespace) -> None:
        config = Config()
        training = replace(
            config.training,
            batch_size=args.batch,
            generator_batch_size=args.batch,
            generator_steps=1,
            device="cpu",
            **options,
        )
        config = replace(config, training=training, model=replace(config.model, width=args.width))
        shape = (args.channels, args.size, args.size)
        pixels = np.random.default_rng(0).integers(0, 256, (4 * args.batch, *shape), np.uint8)
        shard = Shard(path=Path("noise"), images=pixels, labels=None, sha256="")
        pair = build_networks(config, shape)
        batches = Batches(shard, batch_size=args.batch, seed=0, device=1)
        self.device, self.server = Device(1, batches, pair, config), Server(pair, config)

    def seconds(self, repeats: int) -> tuple[float, float]:
        """Of one step of D, and of one of G."""
        start = time.perf_counter()
        for _ in range(repeats):
            self.device.train_discriminator(0)
        middle = time.perf_counter()
        for _ in range(repeats):
            self.server.train_generator()
        return (middle - start) / repeats, (time.perf_counter() - middle) / repeats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=32, help="pixels")
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--width", type=int, default=None)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=2, help="steps in a block")
    args = parser.parse_args()
    torch.set_num_threads(1)

    ways = {name: Way(options, args) for name, options in WAYS.items()}
    blocks: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for block in range(args.blocks + 1):
        for name, way in ways.items():
            seconds = way.seconds(args.repeats)
            if block > 0:  # the first warms up
                blocks[name].append(seconds)
    plain = blocks["float32"]
    result = {
        "benchmark": "images a second / those of plain float32",
        "ratio": {name: _ratio(each, plain) for name, each in blocks.items()},
        "milliseconds_d_g": {
            name: [round(1e3 * statistics.median(part), 1) for part in zip(*each, strict=True)]
            for name, each in blocks.items()
        },
        "multiplies_bfloat16": multiplies_bfloat16(),
        "torch": torch.__version__,
        **{key: vars(args)[key] for key in ("size", "channels", "width", "batch", "blocks")},
    }
    print(json.dumps(result))


def _ratio(each: list[tuple[float, float]], plain: list[tuple[float, float]]) -> dict[str, object]:
    """Median over blocks, and the smallest and the largest."""
    ratios = [sum(base) / sum(seconds) for seconds, base in zip(each, plain, strict=True)]
    spread = [round(min(ratios), 2), round(max(ratios), 2)]
    return {"median": round(statistics.median(ratios), 2), "blocks": spread}


if __name__ == "__main__":
    main()

"""Real batches: a device's way from its shard to the network, against a bare gather in memory.

    python benchmarks/data_path.py [--size 64 --channels 3 --images 20000 --batch 64]

Bare: rows of a torch tensor in memory by index, made float32 in [-1, 1]. Ours: the device's next
batch, from memory and from the file. Blocks alternate within one run. A D step's seconds beside
them, where there is time for one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

import fedgan_mpi.training.environment  # noqa: F401 - before numpy and torch are loaded
from fedgan_mpi.data import Batches, read_shard, write_shard
from fedgan_mpi.federation.device_images import Images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=64, help="pixels")
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    shape = (args.channels, args.size, args.size)
    pixels = np.random.default_rng(0).integers(0, 256, (args.images, *shape), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "device_0001.h5"
        write_shard(path, pixels, None, np.arange(args.images), {})
        ways: dict[str, Callable[[], torch.Tensor]] = {"bare": bare(pixels, args.batch)}
        for name, in_memory in (("memory", True), ("file", False)):
            shard = read_shard(path, image_shape=shape, in_memory=in_memory)
            batches = Batches(shard, batch_size=args.batch, seed=0, device=1)
            images = Images(shard, torch.zeros(1))
            ways[name] = partial(take_next, images, batches)
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for block in range(args.blocks + 1):
            for name, take in ways.items():
                start = time.perf_counter()
                for _ in range(50):
                    take()
                if block > 0:  # the first warms up
                    rates[name].append(50 * args.batch / (time.perf_counter() - start))
    print(
        json.dumps(
            {
                "benchmark": "real batches, images/s",
                **{name: round(statistics.median(values)) for name, values in rates.items()},
                **{f"{name} / bare": ratio(rates, name) for name in ("memory", "file")},
                **vars(args),
            }
        )
    )


def take_next(images: Images, batches: Batches) -> torch.Tensor:
    return images.batch(batches.next())


def bare(pixels: np.ndarray, batch: int) -> Callable[[], torch.Tensor]:
    table, stream = torch.from_numpy(pixels), np.random.default_rng(1)

    def take() -> torch.Tensor:
        indices = torch.from_numpy(stream.integers(0, len(pixels), batch))
        return table[indices].float().mul_(2 / 255).sub_(1)

    return take


def ratio(rates: dict[str, list[float]], name: str) -> list[float]:
    """[median, least, greatest] of the blocks' ratios."""
    ratios = [a / b for a, b in zip(rates[name], rates["bare"], strict=True)]
    return [round(f(ratios), 3) for f in (statistics.median, min, max)]


if __name__ == "__main__":
    main()

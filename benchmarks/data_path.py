"""Measures how fast a device reads real batches, against a bare gather in memory.

    python benchmarks/data_path.py [--size 64 --channels 3 --images 20000 --batch 64]

Bare: index a torch tensor in memory and convert the rows to float32 in [-1, 1]. Memory, file: the
next batch of a device whose shard is in memory or on disk. Blocks alternate in one run. Prints
JSON.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import common
import numpy as np
import torch

from fedgan_mpi.data import Batches, read_shard, write_shard
from fedgan_mpi.federation.device_images import Images

REPEATS = 50
"""Batches per block."""


def main() -> None:
    parser = common.make_parser(__doc__)
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
        readers: dict[str, Callable[[], torch.Tensor]] = {"bare": bare(pixels, args.batch)}
        for name, in_memory in (("memory", True), ("file", False)):
            shard = read_shard(path, image_shape=shape, in_memory=in_memory)
            batches = Batches(shard, batch_size=args.batch, seed=0, device=1)
            readers[name] = partial(next_batch, Images(shard, torch.zeros(1)), batches)
        rates: dict[str, list[float]] = {name: [] for name in readers}
        for block in range(args.blocks + 1):
            for name, read in readers.items():
                start = time.perf_counter()
                for _ in range(REPEATS):
                    read()
                if block > 0:  # block 0 warms up
                    rates[name].append(REPEATS * args.batch / (time.perf_counter() - start))
    common.print_json(
        {
            "benchmark": "real batches, images per second",
            **{name: round(statistics.median(values)) for name, values in rates.items()},
            **{
                f"{name} / bare": common.ratio_summary(rates[name], rates["bare"])
                for name in ("memory", "file")
            },
            **vars(args),
        }
    )


def next_batch(images: Images, batches: Batches) -> torch.Tensor:
    return images.batch(batches.next())


def bare(pixels: np.ndarray, batch: int) -> Callable[[], torch.Tensor]:
    table, stream = torch.from_numpy(pixels), np.random.default_rng(1)

    def read() -> torch.Tensor:
        indices = torch.from_numpy(stream.integers(0, len(pixels), batch))
        return table[indices].float().mul_(2 / 255).sub_(1)

    return read


if __name__ == "__main__":
    main()

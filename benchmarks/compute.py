"""Measures local steps in bfloat16 and channels_last against float32, on one thread of a CPU.

    python benchmarks/compute.py --size 32
    python benchmarks/compute.py --size 64 --batch 32 --blocks 5

A step of D has a batch of real images and one of fakes, which G makes. Blocks of the formats
alternate in one run, and each block gives a ratio. Prints JSON: images per second relative to
float32.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import common
import torch

from fedgan_mpi.hardware.cpu import multiplies_bfloat16

FORMATS: dict[str, dict[str, Any]] = {
    "float32": {},
    "float32, channels_last": {"memory_format": "channels_last"},
    "bfloat16": {"autocast": "bfloat16"},
    "bfloat16, channels_last": {"autocast": "bfloat16", "memory_format": "channels_last"},
}


class Steps:
    """A device and a server in one process, with one of the formats."""

    def __init__(self, options: dict[str, Any], args: argparse.Namespace) -> None:
        self.device, self.server = common.device_and_server(args, options)

    def seconds(self, repeats: int) -> tuple[float, float]:
        """Return the seconds of one step of D and of one step of G."""
        start = time.perf_counter()
        for _ in range(repeats):
            self.device.train_discriminator(0)
        middle = time.perf_counter()
        for _ in range(repeats):
            self.server.train_generator()
        return (middle - start) / repeats, (time.perf_counter() - middle) / repeats


def main() -> None:
    parser = common.make_parser(__doc__)
    parser.add_argument("--size", type=int, default=32, help="pixels")
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--width", type=int, default=None)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=2, help="steps per block")
    args = parser.parse_args()
    torch.set_num_threads(1)

    steps = {name: Steps(options, args) for name, options in FORMATS.items()}
    blocks: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for block in range(args.blocks + 1):
        for name, each in steps.items():
            seconds = each.seconds(args.repeats)
            if block > 0:  # block 0 warms up
                blocks[name].append(seconds)
    totals = {name: [sum(pair) for pair in pairs] for name, pairs in blocks.items()}
    common.print_json(
        {
            "benchmark": "images per second / float32",
            "ratio": {
                name: common.ratio_summary(totals["float32"], total, digits=2)
                for name, total in totals.items()
            },
            "ms_D_G": {
                name: [common.median_ms(part, digits=1) for part in zip(*pairs, strict=True)]
                for name, pairs in blocks.items()
            },
            "multiplies_bfloat16": multiplies_bfloat16(),
            "torch": torch.__version__,
            **{key: vars(args)[key] for key in ("size", "channels", "width", "batch", "blocks")},
        }
    )


if __name__ == "__main__":
    main()

"""Measures what augmentation and regularizers add to a step of D and a step of G, on one thread.

    python benchmarks/extras.py
    python benchmarks/extras.py --size 64 --batch 32 --blocks 5

A device takes a step of D, and the server a step of G. Variants alternate after every such pair.
A block has 16 pairs, and a lazy regularizer acts in the first. A pair of a block takes a sixteenth
of its first one and fifteen sixteenths of the median of the others. Prints JSON: processor time
relative to pairs without extras; other programs disturb it less than the time of day.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import common
import torch

LIMITS = {"flip": 1.05, "color,translation,cutout": 1.05, "r1": 1.10}
INTERVAL = 16
VARIANTS: dict[str, dict[str, Any]] = {
    "none": {},
    "none again": {},
    "flip": {"augment": ("flip",)},
    "color,translation,cutout": {"augment": ("color", "translation", "cutout")},
    "r1": {"regularizer": "r1", "regularizer_interval": INTERVAL},
}


class Steps:
    """A device and a server in one process, with one of the variants."""

    def __init__(self, options: dict[str, Any], args: argparse.Namespace) -> None:
        self.device, self.server = common.device_and_server(args, options)
        self.t = 0

    def seconds(self) -> float:
        """Return the processor seconds of a step of D and a step of G."""
        start = time.process_time()
        self.device.train_discriminator(self.t)
        self.server.train_generator()
        self.t += 1
        return time.process_time() - start


def main() -> None:
    parser = common.make_parser(__doc__)
    parser.add_argument("--size", type=int, default=32, help="pixels")
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--width", type=int, default=None)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)

    steps = {name: Steps(options, args) for name, options in VARIANTS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for block in range(args.blocks + 1):
        pairs: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(INTERVAL):
            for name, each in steps.items():
                pairs[name].append(each.seconds())
        if block > 0:  # block 0 warms up
            for name, (first, *others) in pairs.items():
                share = 1 / INTERVAL
                seconds[name].append(share * first + (1 - share) * statistics.median(others))
    common.print_json(
        {
            "benchmark": "processor time of a step / without extras",
            "ratio": {
                name: common.ratio_summary(each, seconds["none"]) for name, each in seconds.items()
            },
            "ms": {name: common.median_ms(each, digits=1) for name, each in seconds.items()},
            "limits": LIMITS,
            "torch": torch.__version__,
            **{key: vars(args)[key] for key in ("size", "channels", "width", "batch", "blocks")},
        }
    )


if __name__ == "__main__":
    main()

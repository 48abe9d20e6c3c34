"""`python -m data_prep DATASET --devices 8 --out shards/`: cut a data set into shards."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from data_prep.partition import PARTITIONS
from data_prep.prepare import prepare
from data_prep.sources import SOURCES
from fedgan_mpi.errors import UserError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m data_prep", description=__doc__)
    parser.add_argument("dataset", choices=SOURCES, help="the data set")
    parser.add_argument("--devices", type=int, default=8, help="number of shards (default: 8)")
    parser.add_argument(
        "--partition", choices=PARTITIONS, default="iid", help="who holds what (default: iid)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the split (default: 0)")
    parser.add_argument("--out", type=Path, required=True, help="directory to make")
    args = parser.parse_args()
    try:
        if args.devices < 1:
            raise UserError(f"--devices is {args.devices}, but must be at least 1")
        source = SOURCES[args.dataset]()
        manifest = prepare(
            source, args.out, devices=args.devices, partition=args.partition, seed=args.seed
        )
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    held_out = f"{manifest.heldout_images} held out"
    print(f"{args.out}: {sum(manifest.images)} images in {manifest.devices} shards, {held_out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

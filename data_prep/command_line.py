"""The options of `python -m data_prep`: parser, help texts, and the partition they describe."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from data_prep.extractor import KINDS, MIN_GAP_CLOSED
from data_prep.partitions import (
    PARTITIONS,
    Attribute,
    ByFile,
    Classes,
    Dirichlet,
    Iid,
    Partition,
    Quantity,
    Shards,
)
from data_prep.partitions.base import DEFAULT_DEVICES
from data_prep.sources import SOURCES
from data_prep.split import HELDOUT_SHARE
from fedgan_mpi.errors import UserError


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse a command line. `command` is "inspect" or the name of a data set.

    Exits with an error message if an option is invalid.
    """
    parser = argparse.ArgumentParser(
        prog="python -m data_prep",
        description="Split a data set on disk into one HDF5 shard per device. All cores decode "
        "images, or all ranks of `mpirun -n R python -m data_prep ...`.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="DATASET | inspect")
    common = _common_options()
    for name, source in SOURCES.items():
        text = " ".join((source.__doc__ or "").split())
        commands.add_parser(name, parents=[common], help=text, description=text)
    text = "list the contents of a shard directory and verify its checksums"
    inspect = commands.add_parser("inspect", help=text, description=text)
    inspect.add_argument("shards", type=Path, help="directory of shards")
    text = "plot the class histogram and some images of each device"
    inspect.add_argument("--picture", type=Path, metavar="PNG", help=text)
    command = parser.parse_args(arguments)
    if command.command not in ("inspect", "digits") and command.source is None:
        parser.error(f"{command.command} needs --source, the location of its original files")
    return command


def make_partition(command: argparse.Namespace) -> Partition:
    """Build the partition that the options describe.

    Raises UserError if an option has an invalid value or belongs to another partition.
    """
    name = command.partition
    options = {
        key: value for key in _PARTITION_OPTIONS if (value := getattr(command, key)) is not None
    }
    for key in options:
        owners = _PARTITION_OPTIONS[key]
        if name not in owners:
            flag = "--" + key.replace("_", "-")
            raise UserError(
                f"{flag} belongs to --partition {' or '.join(owners)}, but --partition is {name}; "
                f"remove {flag}"
            )
    make: Any = ByFile.read if name == ByFile.name else PARTITIONS[name]
    partition: Partition = make(**options)
    return partition


_PARTITION_OPTIONS = {
    "alpha": (Dirichlet.name, Quantity.name),
    "min_images": (Dirichlet.name, Quantity.name),
    "classes": (Classes.name,),
    "blocks": (Shards.name,),
    "attributes": (Attribute.name,),
    "map": (ByFile.name,),
    "image_column": (ByFile.name,),
    "device_column": (ByFile.name,),
}
"""Option -> the partitions that accept it. The partitions define the defaults."""


def _common_options() -> argparse.ArgumentParser:
    """Return a parser with the options of every data set."""
    parser = argparse.ArgumentParser(add_help=False)
    for title, options in _OPTIONS.items():
        group = parser.add_argument_group(title)
        for flag, settings in options.items():
            group.add_argument(flag, **settings)
    return parser


def _positive(text: str) -> int:
    return _integer(text, 1)


def _nonnegative(text: str) -> int:
    return _integer(text, 0)


def _integer(text: str, least: int) -> int:
    if not text.isdigit() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text} must be an integer of at least {least}")
    return int(text)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 0 and below 1")
    return share


_OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "files": {
        "--source": {
            "type": Path,
            "metavar": "DIR",
            "help": "folder or archive of the original files",
        },
        "--download": {
            "action": "store_true",
            "help": "first download the files to --source through torchvision",
        },
        "--out": {
            "type": Path,
            "required": True,
            "metavar": "DIR",
            "help": "new directory for the shards",
        },
    },
    "images": {
        "--size": {
            "type": _positive,
            "metavar": "PX",
            "help": "height and width in pixels; the central square is resized with antialiasing "
            "(default: 64 if images differ in size, 16 for digits, else the original size)",
        },
        "--channels": {
            "type": int,
            "choices": (1, 3),
            "help": "1 for gray, 3 for RGB (default: the channels of the data set)",
        },
        "--heldout-share": {
            "type": _share,
            "metavar": "SHARE",
            "help": "share of images to hold out if the data set has no official split "
            f"(default: {HELDOUT_SHARE})",
        },
        "--skip-bad": {
            "type": _nonnegative,
            "default": 0,
            "metavar": "N",
            "help": "skip up to N unreadable images and list them in shards.json (default: 0)",
        },
    },
    "partition": {
        "--devices": {
            "type": _positive,
            "metavar": "K",
            "help": f"number of devices, one shard each (default: {DEFAULT_DEVICES})",
        },
        "--seed": {
            "type": _nonnegative,
            "default": 0,
            "help": "seed of the split and the features (default: 0)",
        },
        "--partition": {
            "choices": PARTITIONS,
            "default": Iid.name,
            "help": "iid: equal random parts; dirichlet: unequal class shares; classes: a few "
            "classes per device; shards: blocks of images sorted by class; quantity: unequal "
            "sizes; attribute: by image attributes; by_file: by a CSV table (default: iid)",
        },
        "--alpha": {
            "type": float,
            "help": "dirichlet, quantity: concentration; smaller is more unequal "
            f"(default: {Dirichlet.alpha})",
        },
        "--min-images": {
            "type": int,
            "metavar": "N",
            "help": "dirichlet, quantity: minimum number of images per device "
            f"(default: {Dirichlet.min_images})",
        },
        "--classes": {
            "type": int,
            "metavar": "C",
            "help": f"classes: number of classes per device (default: {Classes.classes})",
        },
        "--blocks": {
            "type": int,
            "metavar": "S",
            "help": f"shards: number of blocks per device (default: {Shards.blocks})",
        },
        "--attributes": {
            "type": lambda text: text.split(","),
            "metavar": "A,B,…",
            "help": "attribute: names of the attributes that separate devices: class; view, sex "
            "(rsna); Male, Smiling, … (celeba)",
        },
        "--map": {
            "type": Path,
            "metavar": "CSV",
            "help": "by_file: CSV table of images and their devices (default: devices.csv)",
        },
        "--image-column": {
            "metavar": "NAME",
            "help": "by_file: column of images: file names, RSNA patients, or indices into data "
            "sets of arrays (default: image)",
        },
        "--device-column": {
            "metavar": "NAME",
            "help": "by_file: column of devices, such as hospitals (default: device)",
        },
    },
    "scores": {
        "--features": {
            "choices": KINDS,
            "default": "auto",
            "help": "feature extractor for scores: a trained classifier, principal components or "
            "none (default: classifier if the images have classes, else pca)",
        },
        "--force": {
            "action": "store_true",
            "help": f"keep a classifier that closes less than {round(100 * MIN_GAP_CLOSED)} %% of "
            "the gap between guessing and perfect accuracy",
        },
    },
    "processes": {
        "--processes": {
            "type": _positive,
            "metavar": "N",
            "help": "number of decoding processes without mpirun (default: one per core)",
        },
    },
}

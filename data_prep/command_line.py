"""The options of `python -m data_prep`, and what they ask for."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from data_prep.extractor import BAR, KINDS
from data_prep.partition import (
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
from data_prep.prepare import HELDOUT_SHARE
from data_prep.sources import SOURCES
from fedgan_mpi.errors import UserError


def parse(arguments: list[str]) -> argparse.Namespace:
    """`command` is "inspect" or a data set's name. Exits where the options are wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep",
        description="Cut a data set on disk into one verified shard a device. Several ranks of "
        "`mpirun -n R python -m data_prep …` share the decoding; without it, all cores do.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="DATASET | inspect")
    common = _preparing()
    for name, source in SOURCES.items():
        about = " ".join((source.__doc__ or "").split())
        commands.add_parser(name, parents=[common], help=about, description=about)
    about = "show who holds what, and verify the checksums of a directory of shards"
    inspect = commands.add_parser("inspect", help=about, description=about)
    inspect.add_argument("shards", type=Path, help="directory of shards")
    about = "also draw the classes and some images of each device"
    inspect.add_argument("--picture", type=Path, metavar="PNG", help=about)
    command = parser.parse_args(arguments)
    if command.command not in ("inspect", "digits") and command.source is None:
        parser.error(f"{command.command} needs --source, the place of its original files")
    return command


def partition(command: argparse.Namespace) -> Partition:
    """The partition that the options describe. Raises UserError where one has a wrong value, or
    belongs to another partition."""
    chosen = command.partition
    given = {key: value for key in _OF_PARTITION if (value := getattr(command, key)) is not None}
    for option in given:
        if chosen not in _OF_PARTITION[option]:
            whose, flag = " and ".join(_OF_PARTITION[option]), "--" + option.replace("_", "-")
            raise UserError(f"{flag} is for the partition {whose}, not {chosen}; leave it out")
    make: Any = ByFile.read if chosen == ByFile.name else PARTITIONS[chosen]
    cut: Partition = make(**given)
    return cut


_OF_PARTITION = {
    "alpha": (Dirichlet.name, Quantity.name),
    "min_images": (Dirichlet.name, Quantity.name),
    "classes": (Classes.name,),
    "blocks": (Shards.name,),
    "attributes": (Attribute.name,),
    "map": (ByFile.name,),
    "image_column": (ByFile.name,),
    "device_column": (ByFile.name,),
}
"""Option -> the partitions that it belongs to; their own defaults hold where it is not given."""


def _preparing() -> argparse.ArgumentParser:
    """Options of every data set."""
    parser = argparse.ArgumentParser(add_help=False)
    for title, options in _OPTIONS.items():
        group = parser.add_argument_group(title)
        for flag, (about, settings) in options.items():
            group.add_argument(flag, help=about, **settings)
    return parser


def _positive(text: str) -> int:
    return _whole(text, 1)


def _count(text: str) -> int:
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    if not text.isdigit() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from {least}")
    return int(text)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to below 1")
    return share


_OPTIONS: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "files": {
        "--source": ("folder or archive of the original files", {"type": Path, "metavar": "DIR"}),
        "--download": (
            "first fetch the files to the source folder through torchvision",
            {"action": "store_true"},
        ),
        "--out": (
            "directory to make for the shards",
            {"type": Path, "required": True, "metavar": "DIR"},
        ),
    },
    "images": {
        "--size": (
            "height and width in pixels; the middle square is resized with antialiasing "
            "(default: 64 where images vary in size, 16 for digits, else unchanged)",
            {"type": _positive, "metavar": "PX"},
        ),
        "--channels": (
            "gray or RGB (default: the data set's own)",
            {"type": int, "choices": (1, 3)},
        ),
        "--heldout-share": (
            "share of images to hold out where the data set has no split of its own "
            f"(default: {HELDOUT_SHARE})",
            {"type": _share, "metavar": "SHARE"},
        ),
        "--skip-bad": (
            "leave out up to N unreadable images, and list them in shards.json (default: 0)",
            {"type": _count, "default": 0, "metavar": "N"},
        ),
    },
    "who holds what": {
        "--devices": ("number of shards (default: 8)", {"type": _positive, "metavar": "K"}),
        "--seed": ("of the split and the features (default: 0)", {"type": _count, "default": 0}),
        "--partition": (
            "iid: equal random parts; dirichlet: classes unequally spread; classes: few classes a "
            "device; shards: sorted blocks; quantity: unequal sizes; attribute: by image "
            "attributes; by_file: by your table (default: iid)",
            {"choices": PARTITIONS, "default": Iid.name},
        ),
        "--alpha": (
            f"dirichlet, quantity: the smaller, the more unequal (default: {Dirichlet.alpha})",
            {"type": float},
        ),
        "--min-images": (
            f"dirichlet, quantity: fewest images of a device (default: {Dirichlet.min_images})",
            {"type": int, "metavar": "N"},
        ),
        "--classes": (
            f"classes: classes a device (default: {Classes.classes})",
            {"type": int, "metavar": "C"},
        ),
        "--blocks": (
            f"shards: sorted blocks a device (default: {Shards.blocks})",
            {"type": int, "metavar": "S"},
        ),
        "--attributes": (
            "attribute: whose combinations differ between devices: class; view, sex (rsna); "
            "Male, Smiling, … (celeba)",
            {"type": lambda text: text.split(","), "metavar": "A,B,…"},
        ),
        "--map": (
            "by_file: CSV table of images and their devices (default: devices.csv)",
            {"type": Path, "metavar": "CSV"},
        ),
        "--image-column": (
            "by_file: column of file names, RSNA patients, or numbers in data sets of arrays "
            "(default: image)",
            {"metavar": "NAME"},
        ),
        "--device-column": (
            "by_file: column of devices, such as a hospital (default: device)",
            {"metavar": "NAME"},
        ),
    },
    "scores": {
        "--features": (
            "what scores look at: a classifier's units, principal components, or nothing "
            "(default: a classifier where there are classes, else pca)",
            {"choices": KINDS, "default": "auto"},
        ),
        "--force": (
            f"keep a classifier that closes less than {round(100 * BAR)} %% of the gap between "
            "guessing and being always right",
            {"action": "store_true"},
        ),
    },
    "work": {
        "--processes": (
            "decoding processes, without mpirun (default: one a core)",
            {"type": _positive, "metavar": "N"},
        ),
    },
}

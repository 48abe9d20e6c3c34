"""The options of all data sets on the command line: their flags, types and help texts."""

from __future__ import annotations

from typing import Any

from data_prep.extractor import KINDS, MIN_GAP_CLOSED
from data_prep.limits import Limits
from data_prep.option_types import (
    Table,
    colour,
    nonnegative,
    own_option,
    positive,
    processes,
    seconds,
    share,
    size,
    umask,
    value_range,
)
from data_prep.partitions import Classes, Dirichlet, Iid, Shards
from data_prep.partitions.base import DEFAULT_DEVICES
from data_prep.split import HELDOUT_SHARE
from fedgan_mpi.config.paths import user_path
from fedgan_mpi.files import PRIVATE

_OWN_OPTION: dict[str, Any] = {
    "type": own_option,
    "action": Table,
    "default": {},
    "metavar": "KEY=VALUE",
}
OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "files": {
        "--source": {
            "type": user_path,
            "metavar": "DIR",
            "help": "folder or archive of the original files",
        },
        "--download": {
            "action": "store_true",
            "help": "first download the files to --source through torchvision",
        },
        "--out": {
            "type": user_path,
            "required": True,
            "metavar": "DIR",
            "help": "new directory for the shards",
        },
        "--umask": {
            "type": umask,
            "default": PRIVATE,
            "metavar": "OCTAL",
            "help": "permissions that the shards lack; 077: only you can read them, 027: your "
            f"group can, 022: all users can (default: {PRIVATE})",
        },
        "--source-option": {
            **_OWN_OPTION,
            "help": "option of the data set's class, a parameter of its class; may be repeated",
        },
    },
    "images": {
        "--size": {
            "type": size,
            "metavar": "PX|HxW",
            "help": "height and width in pixels, such as 64 or 48x64; images are resized with "
            "antialiasing (default: 64 if images differ in size, 16 for digits, else the original "
            "size)",
        },
        "--fit": {
            "choices": ("crop", "pad", "stretch"),
            "default": "crop",
            "help": "how an image of another shape is fitted: crop its middle, pad it with black, "
            "or stretch it (default: crop)",
        },
        "--channels": {
            "type": int,
            "choices": (1, 3),
            "help": "1 for gray, 3 for RGB (default: the channels of the data set)",
        },
        "--range": {
            "type": value_range,
            "metavar": "LOW,HIGH",
            "help": "values that become black and white, in Hounsfield units for CT; replaces a "
            "DICOM file's window (default: 0,255 for images of 8 bits; for others, the minimum "
            "and maximum over all images, found in a first pass)",
        },
        "--depth": {
            "type": int,
            "choices": (8, 16),
            "default": 8,
            "help": "bits of a pixel in the shards; 16 keeps the shades of images of 12 and 16 "
            "bits, and takes twice the space (default: 8)",
        },
        "--background": {
            "type": colour,
            "metavar": "COLOUR",
            "help": "colour below transparent pixels, a name or #rrggbb (default: white)",
        },
        "--heldout-share": {
            "type": share,
            "metavar": "SHARE",
            "help": "share of images to hold out if the data set has no official split "
            f"(default: {HELDOUT_SHARE})",
        },
        "--skip-bad": {
            "type": nonnegative,
            "default": 0,
            "metavar": "N",
            "help": "skip up to N unreadable images and list them in shards.json (default: 0)",
        },
    },
    "partition": {
        "--devices": {
            "type": positive,
            "metavar": "K",
            "help": f"number of devices, one shard each (default: {DEFAULT_DEVICES})",
        },
        "--seed": {
            "type": nonnegative,
            "default": 0,
            "help": "seed of the split and the features (default: 0)",
        },
        "--partition": {
            "metavar": "NAME",
            "default": Iid.name,
            "help": "iid: equal random parts; dirichlet: unequal class shares; classes: a few "
            "classes per device; shards: blocks of images sorted by class; quantity: unequal "
            "sizes; attribute: by image attributes; by_file: by a CSV table; or an installed "
            "name, or an import string such as file.py:Name (default: iid)",
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
            "type": user_path,
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
        "--partition-option": {
            **_OWN_OPTION,
            "help": "option of your own partition, a parameter of its class; may be repeated",
        },
    },
    "scores": {
        "--features": {
            "choices": KINDS,
            "default": "auto",
            "help": "feature extractor for scores: a trained classifier or principal components, "
            "computed from all training images and read by every rank (default: classifier if the "
            "images have classes, else pca)",
        },
        "--force": {
            "action": "store_true",
            "help": f"keep a classifier that closes less than {round(100 * MIN_GAP_CLOSED)} %% of "
            "the gap between guessing and perfect accuracy",
        },
    },
    "processes": {
        "--processes": {
            "type": processes,
            "metavar": "N",
            "help": "number of decoding processes without mpirun; 1: decode in the command's own, "
            "which nothing bounds (default: one per core)",
        },
        "--decode-seconds": {
            "type": seconds,
            "default": Limits.seconds,
            "metavar": "S",
            "help": f"give an image up after S seconds (default: {Limits.seconds:g})",
        },
        "--decode-memory": {
            "type": positive,
            "default": Limits.memory,
            "metavar": "MIB",
            "help": f"give an image up beyond this memory, MiB (default: {Limits.memory})",
        },
    },
}
"""Title -> flag -> settings of argparse."""

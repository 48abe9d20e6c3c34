"""Reads devices.json, the record of the data that each device of a run holds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from fedgan_mpi.errors import UserError
from fedgan_mpi.files import read_regular_file
from fedgan_mpi.run.directory import DEVICES


@dataclass(frozen=True, kw_only=True)
class DeviceData:
    """Image counts of the devices of a run."""

    image_shape: tuple[int, int, int]
    """Channels, height, width."""
    class_names: list[str]
    """Empty without labels."""
    images: list[int]
    """Number of images of device 1, 2, …"""
    histograms: list[list[int]]
    """Images per class, one list per device."""


def read_device_data(run: Path) -> DeviceData | None:
    """Read devices.json of a run; None if an older version wrote the run without it.

    Raises UserError if the file is damaged.
    """
    path = run / DEVICES
    if not path.exists():
        return None
    try:
        table = json.loads(read_regular_file(path))
        data = DeviceData(**{**table, "image_shape": tuple(table["image_shape"])})
        lists = [data.images, *data.histograms]
        are_counts = all(isinstance(n, int) and n >= 0 for counts in lists for n in counts)
        classes = len(data.class_names)
        fits = all(len(histogram) == classes for histogram in data.histograms)
        if not are_counts or not fits or len(data.histograms) != len(data.images):
            raise ValueError
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        raise UserError(f"{path} is damaged; leave the run out") from None
    return data

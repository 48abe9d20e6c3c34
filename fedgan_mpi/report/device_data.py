"""Reads devices.json, the record of the data that each device of a run holds."""

from __future__ import annotations

from pathlib import Path

import msgspec

from fedgan_mpi.errors import UserError
from fedgan_mpi.run.directory import DEVICES
from fedgan_mpi.schema import Count, Positive, SchemaError, check, parse_json, read_bounded


class DeviceData(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Image counts of the devices of a run."""

    image_shape: tuple[Positive, Positive, Positive]
    """Channels, height, width."""
    class_names: list[str]
    """Empty without labels."""
    images: list[Count]
    """Number of images of device 1, 2, …"""
    histograms: list[list[Count]]
    """Images per class, one list per device."""


def read_device_data(run: Path) -> DeviceData | None:
    """Read devices.json of a run; None if an older version wrote the run without it.

    Raises UserError if the file is damaged.
    """
    path = run / DEVICES
    if not path.exists():
        return None
    try:
        data = check(parse_json(read_bounded(path)), DeviceData)
        if len(data.histograms) != len(data.images):
            raise SchemaError(f"it has {len(data.histograms)} histograms of {len(data.images)}")
        if any(len(histogram) != len(data.class_names) for histogram in data.histograms):
            raise SchemaError("a histogram has other classes than class_names")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; leave the run out") from None
    except SchemaError as error:
        raise UserError(f"{path} is damaged; leave the run out ({error})") from None
    return data

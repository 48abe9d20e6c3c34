"""Reads NAME.json, the description of an exported generator. Does not import torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from fedgan_mpi.data import PixelType
from fedgan_mpi.errors import UserError
from fedgan_mpi.schema import Count, SchemaError, check, parse_json, read_bounded

Size = Annotated[int, Meta(ge=1, le=2**16)]


class _Score(msgspec.Struct, forbid_unknown_fields=True):
    round: Count
    metric: str
    value: float
    floor: float
    samples: Count


class GeneratorAbout(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The description that `training/artifacts.py` writes. Later keys inform the user only."""

    architecture: str
    options: dict[str, Any] = {}
    image_shape: tuple[Size, Size, Size] | None = None
    """Generators of version 0.1.0 and earlier have size and channels instead."""
    size: Size | None = None
    channels: Size | None = None
    dtype: PixelType = "uint8"
    """Type of the pixels of the shards."""
    range: tuple[float, float] | None = None
    """As in shards.json."""
    nz: Size
    width: Size | None = None
    """None for networks of a plug-in."""
    class_shares: list[Annotated[float, Meta(ge=0, le=1)]] | None = None
    class_names: list[str] = []
    round: Count = 0
    parameters: Count | None = None
    output: str = ""
    scores: list[_Score] = []
    dataset: str = ""
    shards_sha256: str = ""
    fedgan_mpi: str = ""


def read_about(path: Path) -> dict[str, Any]:
    """Return the content of a generator's JSON file. Raises UserError if it is damaged."""
    try:
        table: dict[str, Any] = parse_json(read_bounded(path), allow_nan=True)
        about = check(table, GeneratorAbout)
        if about.image_shape is None and (about.size is None or about.channels is None):
            raise SchemaError("it lacks the key 'image_shape'")
        shares = about.class_shares
        if shares is not None and not 0 < sum(shares) < len(shares) + 1:
            raise SchemaError("class_shares must have a positive sum")
        if shares is not None and about.class_names and len(about.class_names) != len(shares):
            raise SchemaError("class_names and class_shares differ in length")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except SchemaError as error:
        raise UserError(
            f"{path} is not a generator of this program, or is damaged ({error})"
        ) from None
    return table


def shape_of(about: dict[str, Any]) -> tuple[int, int, int]:
    """Return channels, height and width of the images of a generator."""
    # Generators of version 0.1.0 and earlier have no image_shape.
    shape = about.get("image_shape") or (about["channels"], about["size"], about["size"])
    channels, height, width = shape
    return channels, height, width

"""The manifest of a shard directory, shards.json: contents, counts and hashes of all shards."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from fedgan_mpi.data.pixels import PixelType
from fedgan_mpi.data.shard import FORMAT_VERSION, Shard
from fedgan_mpi.errors import UserError
from fedgan_mpi.files import write_complete
from fedgan_mpi.schema import Count, Positive, SchemaError, check, parse_json, read_bounded, shorten

HELDOUT = "heldout.h5"
MANIFEST = "shards.json"
_MAX_NAME = 100  # characters; file systems allow names of 255 bytes

Hash = Annotated[str, Meta(max_length=64, pattern=r"^[0-9A-Za-z]*\Z")]
Pixels = Annotated[int, Meta(ge=1, le=2**16)]


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The contents of shards.json."""

    format_version: int
    dataset: str
    """Becomes a part of names of run directories."""
    image_shape: tuple[Pixels, Pixels, Pixels]
    """Channels, height, width."""
    class_names: list[str]
    """Empty if the images have no labels."""
    partition: dict[str, Any]
    """Name and parameters of the partition."""
    seed: int
    devices: Positive
    images: list[Positive]
    """Number of images per device."""
    histograms: list[list[Count]]
    """Number of images of each class, one list per device. The lists are empty without labels."""
    pixels_sha256: list[Hash]
    """SHA-256 of the pixels of each device."""
    sha256: Hash
    """SHA-256 over the concatenated hashes in `pixels_sha256`."""
    heldout: str | None
    """Name of the file of held-out images, in the same directory."""
    heldout_images: Count
    features: str | None
    """Name of the feature extractor's file, in the same directory."""
    heldout_sha256: Hash | None = None
    """SHA-256 of the held-out pixels."""
    features_sha256: Hash | None = None
    """SHA-256 of the feature extractor's file."""
    features_accuracy: Annotated[float, Meta(ge=0, le=1)] | None = None
    """Accuracy of the extractor's classifier on held-out images, 0 to 1."""
    dtype: PixelType = "uint8"
    """Type of the pixels. 0 is black, the largest value of the type is white."""
    range: tuple[float, float] | None = None
    """Values of the original images that are black and white here. None: 0 and 255 of 8 bits."""
    skipped: list[str] = []
    """Unreadable images that were skipped, each with the reason."""

    @property
    def bytes_per_image(self) -> int:
        """Bytes of the pixels of one image."""
        return math.prod(self.image_shape) * np.dtype(self.dtype).itemsize

    def extractor_file(self, directory: Path) -> Path | None:
        """Return the file of the extractor beside the shards; None if there is none."""
        return None if self.features is None else directory / self.features

    def write(self, directory: Path) -> None:
        """Write shards.json to a directory, complete or not at all.

        Raises UserError if `read` would refuse the file.
        """
        path = directory / MANIFEST
        table = msgspec.structs.asdict(self)
        for problem in self._problems():
            raise UserError(f"{path} cannot be written: {problem}")
        write_complete(path, (json.dumps(table, indent=1) + "\n").encode())

    def check_shard(self, shard: Shard, device: int) -> None:
        """Raise UserError if a shard differs from the description of its device.

        Compares the number of images, the recorded hash and the label histogram.
        """
        described = (self.images[device - 1], self.pixels_sha256[device - 1])
        if (len(shard), shard.sha256) != described:
            raise UserError(
                f"{shard.path} is not the shard of device {device} that shards.json describes"
            )
        classes = len(self.class_names)
        if classes and _histogram(shard, classes) != self.histograms[device - 1]:
            raise UserError(
                f"{shard.path} has other labels than shards.json describes; the file was changed"
            )

    def check_heldout(self, shard: Shard) -> None:
        """Raise UserError if a shard's recorded hash differs from the held-out file's."""
        if self.heldout_sha256 not in (None, shard.sha256):
            raise UserError(f"{shard.path} is not the file that shards.json describes")

    @staticmethod
    def read(directory: Path) -> Manifest:
        """Read a directory's shards.json.

        Raises UserError if the file is missing, malformed or of another format version.
        """
        path = directory / MANIFEST
        try:
            table = parse_json(read_bounded(path))
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from None
        except SchemaError as error:
            raise UserError(f"{path} is not valid JSON: {error}") from None
        version = table.get("format_version") if isinstance(table, dict) else None
        if type(version) is not int or version != FORMAT_VERSION:
            raise UserError(
                f"{path} has format_version {shorten(version)}, but this program reads "
                f"{FORMAT_VERSION}"
            )
        try:
            manifest = check(table, Manifest)
            for problem in manifest._problems():
                raise SchemaError(problem)
        except SchemaError as error:
            raise UserError(
                f"{path} lacks keys of the shard format or contradicts itself; write it again "
                f"({error})"
            ) from None
        return manifest

    def _problems(self) -> Iterator[str]:
        """Yield each contradiction, and each name that leads out of its directory, as a clause."""
        if not is_plain_name(self.dataset):
            yield (
                f"dataset is {self.dataset[:40]!r}, but must be a name of 1 to {_MAX_NAME} "
                "printable characters without / and \\"
            )
        for key in ("heldout", "features"):
            name = getattr(self, key)
            if name is not None and not is_plain_name(name):
                yield f"{key} is {name[:40]!r}, but must be the name of a file beside shards.json"
        for key in ("images", "histograms", "pixels_sha256"):
            if len(getattr(self, key)) != self.devices:
                yield f"{key} has {len(getattr(self, key))} entries for {self.devices} devices"
        classes = len(self.class_names)
        for images, histogram in zip(self.images, self.histograms, strict=False):
            if len(histogram) != classes:
                yield f"a histogram has {len(histogram)} classes, but class_names has {classes}"
            elif classes and sum(histogram) != images:
                yield f"a histogram has {sum(histogram)} images, but its device {images}"
        if not isinstance(self.partition.get("name"), str):
            yield "partition has no text 'name'"


def is_plain_name(name: str) -> bool:
    """Return whether a text can name a file without leading out of its directory."""
    return (
        0 < len(name) <= _MAX_NAME
        and name.isprintable()
        and not name.startswith((".", " "))
        and "/" not in name
        and "\\" not in name
    )


def _histogram(shard: Shard, classes: int) -> list[int] | None:
    """Return the number of images of each class, or None for missing or invalid labels."""
    labels = shard.labels
    if labels is None or labels.min() < 0 or labels.max() >= classes:
        return None
    counts: list[int] = np.bincount(labels, minlength=classes).tolist()
    return counts

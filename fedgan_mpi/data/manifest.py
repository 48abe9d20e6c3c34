"""The manifest of a shard directory, shards.json: contents, counts and hashes of all shards."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedgan_mpi.data.shard import FORMAT_VERSION, Shard
from fedgan_mpi.errors import UserError
from fedgan_mpi.files import read_regular_file, write_complete

HELDOUT = "heldout.h5"
MANIFEST = "shards.json"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The contents of shards.json."""

    format_version: int
    dataset: str
    image_shape: tuple[int, int, int]
    """Channels, height, width."""
    class_names: list[str]
    """Empty if the images have no labels."""
    partition: dict[str, Any]
    """Name and parameters of the partition."""
    seed: int
    devices: int
    images: list[int]
    """Number of images per device."""
    histograms: list[list[int]]
    """Number of images of each class, one list per device. The lists are empty without labels."""
    pixels_sha256: list[str]
    """SHA-256 of the pixels of each device."""
    sha256: str
    """SHA-256 over the concatenated hashes in `pixels_sha256`."""
    heldout: str | None
    """Name of the file of held-out images, in the same directory."""
    heldout_images: int
    features: str | None
    """Name of the feature extractor's file, in the same directory."""
    heldout_sha256: str | None = None
    """SHA-256 of the held-out pixels."""
    features_sha256: str | None = None
    """SHA-256 of the feature extractor's file."""
    features_accuracy: float | None = None
    """Accuracy of the extractor's classifier on held-out images, 0 to 1."""
    skipped: list[str] = field(default_factory=list)
    """Unreadable images that were skipped, each with the reason."""

    def write(self, directory: Path) -> None:
        """Write shards.json to a directory, complete or not at all."""
        write_complete(directory / MANIFEST, (json.dumps(asdict(self), indent=1) + "\n").encode())

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
            table = json.loads(read_regular_file(path))
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from None
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
            raise UserError(f"{path} is not valid JSON") from None
        version = table.get("format_version") if isinstance(table, dict) else None
        if version != FORMAT_VERSION:
            raise UserError(
                f"{path} has format_version {version!r}, but this program reads {FORMAT_VERSION}"
            )
        try:
            manifest = Manifest(**{**table, "image_shape": tuple(table["image_shape"])})
            manifest._check_consistency()
        except (TypeError, KeyError, ValueError):
            raise UserError(
                f"{path} lacks keys of the shard format or contradicts itself; write it anew"
            ) from None
        return manifest

    def _check_consistency(self) -> None:
        """Raise ValueError if the counts, lists or shapes contradict each other."""
        lists = (self.images, self.histograms, self.pixels_sha256)
        if (
            self.devices < 1
            or any(len(entries) != self.devices for entries in lists)
            or not all(isinstance(n, int) and n >= 1 for n in self.images)
            or len(self.image_shape) != 3
            or not all(isinstance(n, int) for n in self.image_shape)
        ):
            raise ValueError


def _histogram(shard: Shard, classes: int) -> list[int] | None:
    """Return the number of images of each class, or None for missing or invalid labels."""
    labels = shard.labels
    if labels is None or labels.min() < 0 or labels.max() >= classes:
        return None
    counts: list[int] = np.bincount(labels, minlength=classes).tolist()
    return counts

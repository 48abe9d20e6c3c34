"""shards.json: what the shards of a directory say together."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedgan_mpi.data.shard import FORMAT_VERSION, Shard
from fedgan_mpi.errors import UserError
from fedgan_mpi.files import read_whole, write_complete

HELDOUT = "heldout.h5"
MANIFEST = "shards.json"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """One directory's."""

    format_version: int
    dataset: str
    image_shape: tuple[int, int, int]
    """Channels, height, width."""
    class_names: list[str]
    """Empty where the images have no labels."""
    partition: dict[str, Any]
    """The partition's name and parameters."""
    seed: int
    devices: int
    images: list[int]
    """Number of images of device 1, 2, …"""
    histograms: list[list[int]]
    """Images of each class, a list a device; empty lists without labels."""
    pixels_sha256: list[str]
    """Of each device's pixels."""
    sha256: str
    """Over all of the above hashes, in order."""
    heldout: str | None
    """File of images that no device trains on, in the same directory."""
    heldout_images: int
    features: str | None
    """File of the scores' feature extractor, in the same directory."""
    heldout_sha256: str | None = None
    """Of the held-out pixels."""
    features_sha256: str | None = None
    """Of the extractor's file."""
    features_accuracy: float | None = None
    """Share of held-out images that the extractor's classifier names rightly."""
    skipped: list[str] = field(default_factory=list)
    """Images that could not be read and were allowed to be left out, each with the reason."""

    def write(self, directory: Path) -> None:
        write_complete(directory / MANIFEST, (json.dumps(asdict(self), indent=1) + "\n").encode())

    def check_shard(self, shard: Shard, device: int) -> None:
        """Raises UserError where a whole shard is not the one of its device."""
        described = (self.images[device - 1], self.pixels_sha256[device - 1])
        if (len(shard), shard.sha256) != described:
            raise UserError(
                f"{shard.path} is not the shard of device {device} that shards.json describes"
            )
        if (
            self.class_names
            and _histogram(shard, len(self.class_names)) != self.histograms[device - 1]
        ):
            raise UserError(
                f"{shard.path} has other labels than shards.json describes; the file was changed"
            )

    def check_heldout(self, shard: Shard) -> None:
        """Raises UserError where a whole shard is not the held-out images."""
        if self.heldout_sha256 not in (None, shard.sha256):
            raise UserError(f"{shard.path} is not the file that shards.json describes")

    @staticmethod
    def read(directory: Path) -> Manifest:
        """Raises UserError where there is none, or none of this version."""
        path = directory / MANIFEST
        try:
            table = json.loads(read_whole(path))
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
            lists = (manifest.images, manifest.histograms, manifest.pixels_sha256)
            if manifest.devices < 1 or any(len(entries) != manifest.devices for entries in lists):
                raise ValueError
            if not all(isinstance(n, int) and n >= 1 for n in manifest.images):
                raise ValueError
            if len(manifest.image_shape) != 3 or not all(
                isinstance(n, int) for n in manifest.image_shape
            ):
                raise ValueError
        except (TypeError, KeyError, ValueError):
            raise UserError(
                f"{path} lacks keys of the shard format or disagrees with itself; write it anew"
            ) from None
        return manifest


def _histogram(shard: Shard, classes: int) -> list[int] | None:
    """Images of each class; None where some have none of them."""
    labels = shard.labels
    if labels is None or labels.min() < 0 or labels.max() >= classes:
        return None
    counts: list[int] = np.bincount(labels, minlength=classes).tolist()
    return counts

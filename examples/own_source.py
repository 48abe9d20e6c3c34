"""Your own data set and your own partition: tiles of one large picture, divided like a map.

    python -m data_prep own_source.py:Tiles --source map.png --source-option tile=32 \
        --partition own_source.py:Strips --partition-option along=row --devices 4 --out shards/map

A source reads its tables when it is made, and decodes one image at a time. A partition gives each
device the indices of its images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.partitions import Partition
from data_prep.sources import Source
from data_prep.sources.base import Indices
from fedgan_mpi.errors import UserError


class Tiles(Source):
    """Square tiles of one large picture, in rows from its upper left corner."""

    channels = 3

    def __init__(self, path: Path, *, tile: int = 64, heldout_every: int = 5) -> None:
        """tile: height and width of a tile, pixels. heldout_every: one tile of so many is held out.

        What follows the star are your own options: --source-option KEY=VALUE.
        """
        if not path.is_file():
            raise UserError(f"{path} is not a picture")
        with Image.open(path) as picture:
            self.picture = picture.convert("RGB")
        self.tile = self.default_size = tile
        self.columns, self.rows = (side // tile for side in self.picture.size)
        if self.columns * self.rows < 2:
            raise UserError(f"{path} has {self.picture.size} pixels, which is too few for tiles")
        # The classes are dark and bright tiles; leave labels out if your images have no classes.
        brightness = np.array([np.asarray(self.image(n)).mean() for n in range(len(self))])
        self.class_names = ["dark", "bright"]
        self.labels = (brightness > np.median(brightness)).astype(np.int64)
        self.heldout = np.arange(0, len(self), heldout_every)

    def __len__(self) -> int:
        return self.columns * self.rows

    def image(self, index: int) -> Image.Image:
        top, left = (self.tile * n for n in divmod(index, self.columns))
        return self.picture.crop((left, top, left + self.tile, top + self.tile))

    @property
    def keys(self) -> Sequence[str]:
        """The name of each tile, for messages and for `--partition by_file`."""
        return [f"tile {divmod(n, self.columns)}" for n in range(len(self))]

    @property
    def attributes(self) -> list[str]:
        return ["row", "column"]

    def attribute(self, name: str) -> Sequence[str]:
        if name not in self.attributes:
            return super().attribute(name)
        axis = self.attributes.index(name)
        return [str(divmod(n, self.columns)[axis]) for n in range(len(self))]


@dataclass(frozen=True, kw_only=True)
class Strips(Partition):
    """Neighbouring rows or columns of tiles on each device, as many tiles on each."""

    along: str = "column"
    """Attribute of the source that orders the images. Fields are options."""

    def assign(
        self, source: Source, train: Indices, devices: int, stream: np.random.Generator
    ) -> list[Indices]:
        place = np.array([int(value) for value in source.attribute(self.along)])
        order = train[np.argsort(place[train], kind="stable")]
        return np.array_split(order, devices)

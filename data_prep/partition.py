"""How a data set is cut: which images are held out, and which device holds which of the others.

Every partition gives each training image to exactly one device, in the same way for the same seed.
The recipes are those of the field: Hsu et al. 2019 (arXiv:1909.06335) and NIID-Bench (Li et al.
2022, arXiv:2102.02079) for `dirichlet`, `classes` and `quantity`, McMahan et al. 2017
(arXiv:1602.05629) for `shards`.
"""

from __future__ import annotations

import csv
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from data_prep.sources.base import Indices, Source, named
from fedgan_mpi.errors import UserError
from fedgan_mpi.random_streams import Purpose, numpy_stream

_REDRAWS = 1000  # of a Dirichlet partition, before it is called impossible


def hold_out(images: int, share: float, seed: int) -> tuple[Indices, Indices]:
    """A shuffled split into (to train on, held out), each in increasing order."""
    order = numpy_stream(seed, Purpose.SPLIT, 0).permutation(images)
    cut = round(images * share)
    return np.sort(order[cut:]), np.sort(order[:cut])


@dataclass(frozen=True, kw_only=True)
class Partition(ABC):
    """A recipe with its parameters, as shards.json records them."""

    name: ClassVar[str]

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, **asdict(self)}

    def devices(self, asked: int | None) -> int:
        """How many devices there will be. Raises UserError where that is not what was asked."""
        return 8 if asked is None else asked

    def cut(self, source: Source, train: Indices, devices: int, seed: int) -> list[Indices]:
        """The images of device 1, 2, …, each in increasing order. Raises UserError where the
        partition is impossible."""
        if len(train) < devices:
            raise UserError(
                f"{len(train)} images cannot be cut into {devices} shards; ask for fewer devices"
            )
        stream = numpy_stream(seed, Purpose.SPLIT, 1)
        parts = [np.sort(part) for part in self._deal(source, train, devices, stream)]
        for device, part in enumerate(parts, start=1):
            if not len(part):
                raise UserError(
                    f"partition {self.name} leaves device {device} of {devices} without images; "
                    "ask for fewer devices"
                )
        return parts

    @abstractmethod
    def _deal(
        self, source: Source, train: Indices, devices: int, stream: np.random.Generator
    ) -> list[Indices]: ...


@dataclass(frozen=True, kw_only=True)
class Iid(Partition):
    """Equal parts (to one image) of a random order."""

    name = "iid"

    def _deal(
        self, source: Source, train: Indices, devices: int, stream: np.random.Generator
    ) -> list[Indices]:
        return np.array_split(stream.permutation(train), devices)


@dataclass(frozen=True, kw_only=True)
class _Dirichlet(Partition):
    alpha: float = 0.5
    min_images: int = 10

    def __post_init__(self) -> None:
        if not 0 < self.alpha < float("inf"):
            raise UserError(f"--alpha is {self.alpha:g}, but must be above 0")
        if self.min_images < 1:
            raise UserError(f"--min-images is {self.min_images}, but must be at least 1")

    def _deal(
        self, source: Source, train: Indices, devices: int, stream: np.random.Generator
    ) -> list[Indices]:
        if len(train) < devices * self.min_images:
            raise UserError(
                f"{len(train)} images do not suffice for {devices} devices of at least "
                f"{self.min_images}; ask for fewer devices or a smaller --min-images"
            )
        for _ in range(_REDRAWS):
            parts = self._draw(source, train, devices, stream)
            if min(len(part) for part in parts) >= self.min_images:
                return parts
        raise UserError(
            f"{_REDRAWS} draws with --alpha {self.alpha:g} all left one of {devices} devices with "
            f"fewer than {self.min_images} images; use a larger --alpha, fewer devices or a "
            "smaller --min-images"
        )

    @abstractmethod
    def _draw(
        self, source: Source, train: Indices, devices: int, stream: np.random.Generator
    ) -> list[Indices]: ...


@dataclass(frozen=True, kw_only=True)
class Dirichlet(_Dirichlet):
    """Each class is spread over the devices by its own draw from Dir(alpha); a device that already
    has its N/K images gets no more (NIID-Bench)."""

    name = "dirichlet"

    def _draw(
        self, source: Source, train: Indices, devices: int, stream: np.random.Generator
    ) -> list[Indices]:
        parts = [np.empty(0, np.int64)] * devices
        for members in _by_class(self, source, train):
            shares = stream.dirichlet(np.full(devices, self.alpha))
            shares *= [len(part) < len(train) / devices for part in parts]
            if not shares.sum() > 0:  # a tiny alpha gave all to devices that are full
                return [np.empty(0, np.int64)] * devices
            cuts = (np.cumsum(shares / shares.sum())[:-1] * len(members)).astype(int)
            pieces = np.split(stream.permutation(members), cuts)
            parts = [np.concatenate(pair) for pair in zip(parts, pieces, strict=True)]
        return parts


@dataclass(frozen=True, kw_only=True)
class Quantity(_Dirichlet):
    """Sizes drawn from Dir(alpha), images at random."""

    name = "quantity"

    def _draw(
        self, source: Source, train: Indices, devices: int, stream: np.random.Generator
    ) -> list[Indices]:
        shares = stream.dirichlet(np.full(devices, self.alpha))
        cuts = (np.cumsum(shares)[:-1] * len(train)).astype(int)
        return np.split(stream.permutation(train), cuts)


@dataclass(frozen=True, kw_only=True)
class Classes(Partition):
    """Each device holds `classes` of the classes; a class is split evenly among its holders."""

    name = "classes"
    classes: int = 2

    def _deal(
        self, source: Source, train: Indices, devices: int, stream: np.random.Generator
    ) -> list[Indices]:
        members = _by_class(self, source, train)
        if not 1 <= self.classes <= len(members):
            raise UserError(
                f"--classes is {self.classes}, but must be from 1 to {len(members)}, the number "
                "of classes"
            )
        if devices * self.classes < len(members):
            raise UserError(
                f"{devices} devices of {self.classes} classes cannot hold all {len(members)} "
                "classes; ask for more --classes or --devices"
            )
        holders: list[list[int]] = [[] for _ in members]
        for device in list(range(devices)) * self.classes:
            # Whichever has the fewest holders comes next, so every class is held by someone and
            # none by many more than another.
            open_to = [c for c, others in enumerate(holders) if device not in others]
            fewest = min(len(holders[c]) for c in open_to)
            chosen = stream.choice([c for c in open_to if len(holders[c]) == fewest])
            holders[chosen].append(device)
        parts = [[np.empty(0, np.int64)] for _ in range(devices)]
        for images, others in zip(members, holders, strict=True):
            for device, piece in zip(
                others, np.array_split(stream.permutation(images), len(others)), strict=True
            ):
                parts[device].append(piece)
        return [np.concatenate(pieces) for pieces in parts]


@dataclass(frozen=True, kw_only=True)
class Shards(Partition):
    """The images sorted by class and cut into equal blocks, of which each device gets `blocks`."""

    name = "shards"
    blocks: int = 2

    def _deal(
        self, source: Source, train: Indices, devices: int, stream: np.random.Generator
    ) -> list[Indices]:
        if self.blocks < 1 or len(train) < devices * self.blocks:
            most = len(train) // devices
            raise UserError(f"--blocks is {self.blocks}, but must be from 1 to {most}")
        order = np.concatenate([stream.permutation(m) for m in _by_class(self, source, train)])
        blocks = np.array_split(order, devices * self.blocks)
        dealt = stream.permutation(len(blocks)).reshape(devices, self.blocks)
        return [np.concatenate([blocks[block] for block in mine]) for mine in dealt]


@dataclass(frozen=True, kw_only=True)
class Attribute(Partition):
    """Devices differ in attributes: every combination of values that occurs is a cell, and cells
    are dealt to devices in turn (or, with fewer cells than devices, devices to cells)."""

    name = "attribute"
    attributes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.attributes:
            raise UserError("--partition attribute needs --attributes, such as Male,Smiling")

    def _deal(
        self, source: Source, train: Indices, devices: int, stream: np.random.Generator
    ) -> list[Indices]:
        columns = [np.array(source.attribute(name))[train] for name in self.attributes]
        cells = np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)[1].reshape(-1)
        count = int(cells.max()) + 1
        parts = [[np.empty(0, np.int64)] for _ in range(devices)]
        for cell in range(count):
            mine = range(cell % devices, devices, count)
            images = stream.permutation(train[cells == cell])
            for device, piece in zip(mine, np.array_split(images, len(mine)), strict=True):
                parts[device].append(piece)
        return [np.concatenate(pieces) for pieces in parts]


@dataclass(frozen=True, kw_only=True)
class ByFile(Partition):
    """A table says which device, or site, holds each image."""

    name = "by_file"
    sites: list[str]
    """Device 1, 2, … as the table calls them."""
    holders: dict[str, str] = field(repr=False)
    """Site by image."""
    file: str

    @staticmethod
    def read(
        map: Path = Path("devices.csv"), image_column: str = "image", device_column: str = "device"
    ) -> ByFile:
        """Raises UserError where the table is missing, lacks a column or contradicts itself."""
        holders: dict[str, str] = {}
        with named(map, "a table"), map.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            for column in (image_column, device_column):
                if column not in (rows.fieldnames or ()):
                    there = ", ".join(rows.fieldnames or ["none"])
                    raise UserError(f"{map} has no column {column!r}; its columns are {there}")
            for row in rows:
                image, site = row[image_column], row[device_column]
                if not site:
                    raise UserError(f"{map}, line {rows.line_num}: {image} has no device")
                if holders.setdefault(image, site) != site:
                    raise UserError(f"{map} gives {image} to both {holders[image]} and {site}")
        sites = set(holders.values())
        numbered = all(site.isdigit() for site in sites)
        order = sorted(sites, key=int) if numbered else sorted(sites)
        return ByFile(sites=order, holders=holders, file=str(map))

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "file": self.file, "sites": self.sites}

    def devices(self, asked: int | None) -> int:
        if asked not in (None, len(self.sites)):
            raise UserError(f"--devices is {asked}, but {self.file} names {len(self.sites)}")
        return len(self.sites)

    def _deal(
        self, source: Source, train: Indices, devices: int, stream: np.random.Generator
    ) -> list[Indices]:
        keys = source.keys
        if unknown := self.holders.keys() - set(keys):
            raise UserError(f"{self.file} names {min(unknown)}, which {source.name} does not have")
        place = {site: device for device, site in enumerate(self.sites)}
        parts: list[list[int]] = [[] for _ in range(devices)]
        for index in train.tolist():
            if keys[index] not in self.holders:
                raise UserError(f"{self.file} does not say which device holds {keys[index]}")
            parts[place[self.holders[keys[index]]]].append(index)
        return [np.array(part, np.int64) for part in parts]


PARTITIONS: dict[str, type[Partition]] = {
    partition.name: partition
    for partition in (Iid, Dirichlet, Classes, Shards, Quantity, Attribute, ByFile)
}


def _by_class(partition: Partition, source: Source, train: Indices) -> list[Indices]:
    """The training images of each class that has any."""
    if source.labels is None:
        raise UserError(
            f"partition {partition.name} needs classes, but {source.name} has none here; "
            "use iid, quantity, attribute or by_file"
        )
    labels: NDArray[np.int64] = source.labels[train]
    return [train[labels == label] for label in np.unique(labels)]

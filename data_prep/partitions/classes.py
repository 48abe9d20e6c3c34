"""Partitions with few classes per device.

Sources: NIID-Bench (Li et al. 2022, arXiv:2102.02079) for `classes`, and McMahan et al. 2017
(arXiv:1602.05629) for `shards`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_prep.partitions.base import Partition, split_by_class
from data_prep.sources.base import Indices, Source
from fedgan_mpi.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Classes(Partition):
    """Give each device a fixed number of classes; split each class evenly among its devices."""

    name = "classes"
    classes: int = 2

    def assign(
        self, source: Source, train: Indices, devices: int, stream: np.random.Generator
    ) -> list[Indices]:
        members = split_by_class(self, source, train)
        if not 1 <= self.classes <= len(members):
            raise UserError(
                f"--classes is {self.classes}, but must be from 1 to {len(members)}, the number "
                "of classes"
            )
        if devices * self.classes < len(members):
            raise UserError(
                f"{devices} devices with {self.classes} classes each cannot hold all "
                f"{len(members)} classes; use more --classes or --devices"
            )
        holders = self._draw_holders(len(members), devices, stream)
        parts = [[np.empty(0, np.int64)] for _ in range(devices)]
        for images, class_holders in zip(members, holders, strict=True):
            pieces = np.array_split(stream.permutation(images), len(class_holders))
            for device, piece in zip(class_holders, pieces, strict=True):
                parts[device].append(piece)
        return [np.concatenate(pieces) for pieces in parts]

    def _draw_holders(
        self, classes: int, devices: int, stream: np.random.Generator
    ) -> list[list[int]]:
        """Draw the devices of each class.

        Each device takes a random one of the classes with the fewest devices. Each class therefore
        has a device, and the numbers of devices per class stay close to each other.
        """
        holders: list[list[int]] = [[] for _ in range(classes)]
        for device in list(range(devices)) * self.classes:
            candidates = [c for c in range(classes) if device not in holders[c]]
            fewest = min(len(holders[c]) for c in candidates)
            chosen = stream.choice([c for c in candidates if len(holders[c]) == fewest])
            holders[chosen].append(device)
        return holders


@dataclass(frozen=True, kw_only=True)
class Shards(Partition):
    """Sort the images by class, cut them into equal blocks, and give each device some blocks."""

    name = "shards"
    blocks: int = 2

    def assign(
        self, source: Source, train: Indices, devices: int, stream: np.random.Generator
    ) -> list[Indices]:
        most = len(train) // devices
        if not 1 <= self.blocks <= most:
            raise UserError(f"--blocks is {self.blocks}, but must be from 1 to {most}")
        members = split_by_class(self, source, train)
        order = np.concatenate([stream.permutation(images) for images in members])
        blocks = np.array_split(order, devices * self.blocks)
        dealt = stream.permutation(len(blocks)).reshape(devices, self.blocks)
        return [np.concatenate([blocks[block] for block in hand]) for hand in dealt]

"""The partition by image attributes, such as a patient's sex."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from data_prep.partitions.base import Partition
from data_prep.sources.base import Indices, Source
from fedgan_mpi.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Attribute(Partition):
    """Separate devices by attributes.

    Each combination of values that occurs is a cell. Devices receive the cells in turn. If there
    are fewer cells than devices, several devices share a cell evenly.
    """

    name = "attribute"
    attributes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.attributes:
            raise UserError("--partition attribute needs --attributes, such as Male,Smiling")

    def assign(
        self, source: Source, train: Indices, devices: int, stream: np.random.Generator
    ) -> list[Indices]:
        columns = [np.array(source.attribute(name))[train] for name in self.attributes]
        cells = np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)[1].reshape(-1)
        count = int(cells.max()) + 1
        parts = [[np.empty(0, np.int64)] for _ in range(devices)]
        for cell in range(count):
            holders = range(cell % devices, devices, count)
            images = stream.permutation(train[cells == cell])
            for device, piece in zip(holders, np.array_split(images, len(holders)), strict=True):
                parts[device].append(piece)
        return [np.concatenate(pieces) for pieces in parts]

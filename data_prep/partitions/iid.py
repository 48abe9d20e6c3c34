"""The IID partition."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_prep.partitions.base import Partition
from data_prep.sources.base import Indices, Source


@dataclass(frozen=True, kw_only=True)
class Iid(Partition):
    """Random parts of equal size, to one image."""

    name = "iid"

    def assign(
        self, source: Source, train: Indices, devices: int, stream: np.random.Generator
    ) -> list[Indices]:
        return np.array_split(stream.permutation(train), devices)

"""The base class of all partitions, and the split into classes that several of them need."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from data_prep.sources.base import Indices, Source
from fedgan_mpi.errors import UserError
from fedgan_mpi.random_streams import Purpose, numpy_stream

DEFAULT_DEVICES = 8


@dataclass(frozen=True, kw_only=True)
class Partition(ABC):
    """A rule with its parameters. Each training image goes to exactly one device."""

    name: ClassVar[str]

    def describe(self) -> dict[str, Any]:
        """Return the name and parameters for shards.json."""
        return {"name": self.name, **asdict(self)}

    def devices(self, requested: int | None) -> int:
        """Return the number of devices. Raises UserError if `requested` is impossible."""
        return DEFAULT_DEVICES if requested is None else requested

    def split(self, source: Source, train: Indices, devices: int, seed: int) -> list[Indices]:
        """Split the training images into one sorted index array per device.

        Raises UserError if the partition is impossible or a device receives no image.
        """
        if len(train) < devices:
            raise UserError(
                f"{len(train)} images cannot fill {devices} shards; use fewer --devices"
            )
        stream = numpy_stream(seed, Purpose.SPLIT, 1)
        parts = [np.sort(part) for part in self._assign(source, train, devices, stream)]
        for device, part in enumerate(parts, start=1):
            if not len(part):
                raise UserError(
                    f"partition {self.name} gives device {device} of {devices} no images; "
                    "use fewer --devices"
                )
        return parts

    @abstractmethod
    def _assign(
        self, source: Source, train: Indices, devices: int, stream: np.random.Generator
    ) -> list[Indices]:
        """Return the image indices of each device, in any order."""


def split_by_class(partition: Partition, source: Source, train: Indices) -> list[Indices]:
    """Return the training images of each class that occurs.

    Raises UserError if the source has no classes.
    """
    if source.labels is None:
        raise UserError(
            f"partition {partition.name} needs classes, but {source.name} has none; "
            "use iid, quantity, attribute or by_file"
        )
    labels: NDArray[np.int64] = source.labels[train]
    return [train[labels == label] for label in np.unique(labels)]

"""The base class of all partitions, and the split into classes that several of them need."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
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
    """A rule with its parameters. Each training image goes to exactly one device.

    A subclass that is a dataclass, too, has its options as fields.
    """

    name: ClassVar[str]
    """Name on the command line. Default: the name of the class."""

    def __init_subclass__(cls) -> None:
        if "name" not in vars(cls):
            cls.name = cls.__name__

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
        assigned = self.assign(source, train, devices, stream)
        parts = [np.sort(part) for part in self._checked(assigned, train, devices)]
        for device, part in enumerate(parts, start=1):
            if not len(part):
                raise UserError(
                    f"partition {self.name} gives device {device} of {devices} no images; "
                    "use fewer --devices"
                )
        return parts

    def _checked(self, assigned: Any, train: Indices, devices: int) -> list[Indices]:
        """Return the parts as arrays. Raises UserError unless they divide the training images."""
        wrong = (
            f"partition {self.name} must give one array of indices for each of {devices} devices"
        )
        try:
            parts = [np.asarray(part) for part in assigned]
        except (TypeError, ValueError):
            raise UserError(f"{wrong}, but gives a {type(assigned).__name__}") from None
        if len(parts) != devices:
            raise UserError(f"{wrong}, but gives {len(parts)}")
        for part in parts:
            if part.ndim != 1 or (part.dtype.kind not in "iu" and len(part)):
                raise UserError(f"{wrong}, but gives {part.dtype} {part.shape}")
        given = np.concatenate(parts).astype(np.int64)
        if len(unknown := np.setdiff1d(given, train)):
            raise UserError(
                f"partition {self.name} assigns image {unknown[0]}, which is not for training"
            )
        if len(given) != len(train) or len(np.unique(given)) != len(train):
            raise UserError(
                f"partition {self.name} must assign each of {len(train)} training images once, but "
                f"assigns {len(np.unique(given))} images {len(given)} times"
            )
        return [part.astype(np.int64) for part in parts]

    @abstractmethod
    def assign(
        self, source: Source, train: Indices, devices: int, stream: np.random.Generator
    ) -> Sequence[Indices]:
        """Return the image indices of each device, in any order.

        train: indices of all images that are not held out. stream: the only source of randomness.
        """


def recorded(partition: Partition) -> dict[str, Any]:
    """Return a partition's description as JSON holds it."""
    description = {"name": partition.name, **partition.describe()}
    table: dict[str, Any] = json.loads(json.dumps(description, default=str))
    return table


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

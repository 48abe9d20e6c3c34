"""How a data set is cut: which images are held out, and which device holds which of the others."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedgan_mpi.errors import UserError
from fedgan_mpi.streams import Purpose, numpy_stream

Indices = NDArray[np.int64]


def hold_out(images: int, share: float, seed: int) -> tuple[Indices, Indices]:
    """A shuffled split into (to train on, held out), each in increasing order."""
    order = numpy_stream(seed, Purpose.SPLIT, 0).permutation(images)
    cut = round(images * share)
    return np.sort(order[cut:]), np.sort(order[:cut])


def iid(indices: Indices, devices: int, seed: int) -> list[Indices]:
    """Equal parts (to one image) of a random order."""
    if len(indices) < devices:
        raise UserError(
            f"{len(indices)} images cannot be cut into {devices} shards; ask for fewer devices"
        )
    order = numpy_stream(seed, Purpose.SPLIT, 1).permutation(indices)
    return [np.sort(part) for part in np.array_split(order, devices)]


PARTITIONS = {"iid": iid}

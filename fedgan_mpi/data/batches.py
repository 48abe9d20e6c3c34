"""Draws random batches from one shard. Knows nothing of networks or tensors."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedgan_mpi.data.pixels import Images
from fedgan_mpi.data.shard import Shard
from fedgan_mpi.random_streams import Purpose, numpy_stream


class Batches:
    """An endless sequence of batches from one shard, in a new random order each epoch.

    The order follows from the seed, the device and the epoch. The number of images drawn,
    `drawn`, is therefore the complete state.
    """

    def __init__(self, shard: Shard, *, batch_size: int, seed: int, device: int) -> None:
        self.shard, self._seed, self._device = shard, seed, device
        self.size = min(batch_size, len(shard))
        self.drawn = 0
        self._epoch = -1
        self._order: NDArray[np.int64] = np.empty(0, np.int64)

    def draw(self) -> Images:
        """Return the images of the next batch, (size, C, H, W)."""
        return self.shard.take(self.next())

    def next(self) -> NDArray[np.int64]:
        """Return the shard indices of the next batch, int64 (size,). A batch may span epochs."""
        pieces = []
        missing = self.size
        while missing > 0:
            epoch, start = divmod(self.drawn, len(self.shard))
            if epoch != self._epoch:
                stream = numpy_stream(self._seed, Purpose.REAL, self._device, epoch)
                self._epoch, self._order = epoch, stream.permutation(len(self.shard))
            piece = self._order[start : start + missing]
            pieces.append(piece)
            missing -= len(piece)
            self.drawn += len(piece)
        return np.concatenate(pieces) if len(pieces) > 1 else pieces[0]

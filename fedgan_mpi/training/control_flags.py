"""Flags that all ranks share after each round: stop, requeue, checkpoint due, checkpoint failed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class ControlFlags:
    """This rank's flags; after the all-reduce of `numbers`, the logical OR over ranks."""

    def __init__(self, parts: NDArray[np.float64]) -> None:
        """parts: an array of the shape that describes a checkpoint's files."""
        self._shape = parts.shape
        self.numbers = np.zeros(5 + parts.size)

    def set(
        self,
        *,
        requeue: bool,
        interrupted: bool,
        writing: bool,
        late: bool,
        failed: bool,
        parts: NDArray[np.float64],
    ) -> None:
        """Set this rank's flags.

        requeue, interrupted: this rank received such a signal. writing: its part of a checkpoint is
        not on disk yet. failed: its part cannot be written. late: a checkpoint is due by the clock.
        parts: description of this rank's part.
        """
        self.numbers[:5] = requeue, interrupted, writing, late, failed
        self.numbers[5:] = parts.ravel()

    @property
    def requeue(self) -> bool:
        return bool(self.numbers[0])

    @property
    def stop(self) -> bool:
        return bool(self.numbers[:2].any())

    @property
    def writing(self) -> bool:
        return bool(self.numbers[2])

    @property
    def late(self) -> bool:
        return bool(self.numbers[3])

    @property
    def failed(self) -> bool:
        return bool(self.numbers[4])

    @property
    def parts(self) -> NDArray[np.float64]:
        return self.numbers[5:].reshape(self._shape)

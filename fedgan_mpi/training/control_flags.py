"""Flags that all ranks share after each round: stop, requeue, end, checkpoint due or failed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class ControlFlags:
    """This rank's flags; after the all-reduce of `numbers`, the logical OR over ranks."""

    def __init__(self) -> None:
        self.numbers: NDArray[np.float64] = np.zeros(6)

    def set(
        self,
        *,
        requeue: bool,
        interrupted: bool,
        writing: bool,
        late: bool,
        failed: bool,
        end: bool,
    ) -> None:
        """Set this rank's flags.

        requeue, interrupted: This rank received such a signal.
        writing: Its part of a checkpoint is not on disk yet.
        failed: Its part cannot be written.
        late: A checkpoint is due by the clock.
        end: A callback asks to end the training.
        """
        self.numbers[:] = requeue, interrupted, writing, late, failed, end

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
    def end(self) -> bool:
        return bool(self.numbers[5])

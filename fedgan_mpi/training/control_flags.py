"""What ranks must agree on after a round."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class ControlFlags:
    """One rank's, and once `numbers` are added up with the round's own, that of all."""

    def __init__(self, parts: NDArray[np.float64]) -> None:
        """parts: the shape in which those of a checkpoint are told."""
        self._shape = parts.shape
        self.numbers = np.zeros(5 + parts.size)

    def cast(
        self,
        *,
        requeue: bool,
        interrupted: bool,
        writing: bool,
        late: bool,
        failed: bool,
        parts: NDArray[np.float64],
    ) -> None:
        """This rank's. requeue, interrupted: signals that it got; writing: its part of a checkpoint
        is not yet on disk; failed: it cannot be; parts: what it is; late: a checkpoint is due by
        the clock."""
        self.numbers[:5] = requeue, interrupted, writing, late, failed
        self.numbers[5:] = parts.ravel()

    @property
    def requeue(self) -> bool:
        return bool(self.numbers[0])

    @property
    def stops(self) -> bool:
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

"""Learning-rate schedules over rounds. Plain Python."""

from __future__ import annotations

import math
from collections.abc import Callable

from fedgan_mpi.config import TrainingConfig


def rate_factor(training: TrainingConfig, t: int) -> float:
    """Return the factor of both learning rates in round t, counted from 0.

    It rises linearly to 1 in the warm-up, and then falls from 1 in the first round after it towards
    0 after the last round.
    """
    warmup = training.warmup_rounds
    if t < warmup:
        return (t + 1) / warmup
    return _SHAPES[training.lr_schedule]((t - warmup) / max(1, training.rounds - warmup))


_SHAPES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1 - done,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
}
"""Name -> factor for the share of rounds that are done."""

"""Options of checkpoints."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedgan_mpi.config.require import require


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Checkpoints, from which a run resumes."""

    every: int = 100
    """Rounds between checkpoints. 0: only after the last round."""
    keep_last: int = 2
    """Number of checkpoints to keep. Older ones are deleted."""
    keep_best: bool = False
    """Also keep the checkpoint with the best score. Each scored round then has a checkpoint."""
    minutes: float | None = None
    """Also write a checkpoint after this number of minutes, at the end of a round. None: no limit
    in minutes."""

    def __post_init__(self) -> None:
        require(self.every >= 0, "checkpoint.every", self.every, "at least 0")
        valid = self.minutes is None or 0 < self.minutes < math.inf
        require(valid, "checkpoint.minutes", self.minutes, "above 0 and finite")
        require(self.keep_last >= 1, "checkpoint.keep_last", self.keep_last, "at least 1")

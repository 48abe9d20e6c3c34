"""Options of records beside stats.jsonl."""

from __future__ import annotations

from dataclasses import dataclass

from fedgan_mpi.config.require import require


@dataclass(frozen=True, kw_only=True)
class RecordConfig:
    """Records beside stats.jsonl."""

    tensorboard: bool = False
    """Also write losses, scores, seconds and sample grids for TensorBoard, into the run
    directory."""
    grid_every: int = 0
    """Rounds between additional sample grids. 0: only the grids of scored rounds."""

    def __post_init__(self) -> None:
        require(self.grid_every >= 0, "record.grid_every", self.grid_every, "at least 0")

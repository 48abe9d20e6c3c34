"""Options of records beside stats.jsonl."""

from __future__ import annotations

from dataclasses import dataclass

from fedgan_mpi.config.options import check_listed
from fedgan_mpi.config.require import require

PROFILE_WARM_UP = 5
"""Rounds of a job before those that are profiled: CUDA graphs and caches are ready after them."""


@dataclass(frozen=True, kw_only=True)
class RecordConfig:
    """Records beside stats.jsonl."""

    trackers: tuple[str, ...] = ()
    """Programs that also get losses, scores, seconds and sample grids, as installed ones or import
    strings, too. tensorboard: into the run directory. wandb: offline unless WANDB_MODE says
    otherwise. mlflow: into the run directory unless MLFLOW_TRACKING_URI names a server."""
    tensorboard: bool = False
    """The same as trackers tensorboard."""
    grid_every: int = 0
    """Rounds between additional sample grids. 0: only the grids of scored rounds."""
    profile: int = 0
    """Rounds that torch's profiler traces after the first five of a job, into one file per rank.
    The traced rounds take longer. 0: none."""

    def __post_init__(self) -> None:
        check_listed("record.trackers", self.trackers, {})
        require(self.grid_every >= 0, "record.grid_every", self.grid_every, "at least 0")
        require(self.profile >= 0, "record.profile", self.profile, "at least 0")

    @property
    def all_trackers(self) -> tuple[str, ...]:
        """The trackers, with `tensorboard` resolved."""
        add = self.tensorboard and "tensorboard" not in self.trackers
        return (*self.trackers, "tensorboard") if add else self.trackers

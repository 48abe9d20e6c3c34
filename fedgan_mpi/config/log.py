"""Options of log messages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedgan_mpi.config.require import require


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Log messages."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe messages to log."""
    per_rank: str | None = None
    """Directory for one log file per rank. None: no log files."""

    def __post_init__(self) -> None:
        require(self.per_rank != "", "log.per_rank", self.per_rank, "a path")

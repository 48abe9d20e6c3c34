"""The result of a training run."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedgan_mpi.run.generator_file import TrainedGenerator


@dataclass(frozen=True)
class Result:
    """The result of a training run, equal on every rank."""

    path: Path
    """The run directory."""
    rounds: int
    """Completed rounds."""
    scores: list[dict[str, Any]]
    """The last scores, as in stats.jsonl; empty for a run without scores."""
    exit_status: int
    """0, or the exit status of a run that a signal has stopped."""

    @cached_property
    def generator(self) -> TrainedGenerator:
        """The trained generator, as `load_generator(path)` returns it."""
        from fedgan_mpi.run.generator_file import load

        # Networks of this run may run again in this process.
        return load(self.path)

"""Weights & Biases."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedgan_mpi.data import Images, to_8_bits
from fedgan_mpi.files import write_complete
from fedgan_mpi.run.image_grids import grid
from fedgan_mpi.trackers import Tracker, numbers_of

_ID = "wandb_id.txt"
"""File of the run directory with the identity of the run, which a resumed run continues."""


class WandB(Tracker):
    """Weights & Biases; offline unless WANDB_MODE says otherwise. Later: `wandb sync RUN/wandb/*`.

    WANDB_PROJECT names the project. Default: fedgan_mpi.
    """

    def __init__(self) -> None:
        self._run: Any = None

    def on_run_begin(self, run: Path, done: int) -> None:
        if self._run is not None:  # after a rollback
            return
        import wandb

        self._run = wandb.init(
            dir=run,
            project=os.environ.get("WANDB_PROJECT", "fedgan_mpi"),
            name=run.name,
            id=_identity(run),
            resume="allow",
            mode=os.environ.get("WANDB_MODE", "offline"),  # type: ignore[arg-type]
            config=dict(self.config),
            settings=wandb.Settings(console="off", silent=True, disable_git=True),
        )
        # Scores of a round arrive after the next round, which wandb's own steps do not allow.
        self._run.define_metric("*", step_metric="round")

    def on_round_end(self, round: int, metrics: Mapping[str, Any]) -> None:
        self._run.log({"round": round, **numbers_of(metrics)})

    def on_score(self, scores: Sequence[Mapping[str, Any]]) -> None:
        for score in scores:
            self._run.log({"round": score["round"], f"score/{score['metric']}": score["value"]})

    def on_samples(self, round: int, images: Images) -> None:
        import wandb

        self._run.log({"round": round, "samples": wandb.Image(to_8_bits(grid(images)))})

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()


def _identity(run: Path) -> str:
    path = run / _ID
    if not path.exists():
        write_complete(path, os.urandom(8).hex().encode())
    return path.read_text(encoding="ascii")

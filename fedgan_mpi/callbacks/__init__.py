"""Callbacks: a user's own code at fixed points of a training run.

```python
class Print(fedgan_mpi.callbacks.Callback):
    def on_score(self, scores):
        print(scores[0]["round"], scores[0]["value"])

fedgan_mpi.train("experiment.toml", callbacks=[Print()])
```
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedgan_mpi.data import Images
    from fedgan_mpi.run.result import Result


class Callback:
    """Base class. Every method does nothing by default, and is called on every rank,
    except `on_checkpoint` and `on_samples`.

    A method must not call MPI on the run's communicator.
    """

    def on_run_begin(self, run: Path, done: int) -> None:
        """Called before the first round, and again after a rollback (`link.survive`).

        Args:
            run: The run directory.
            done: Number of completed rounds.
        """

    def on_round_end(self, round: int, metrics: Mapping[str, Any]) -> bool | None:
        """Called after each round with its line of stats.jsonl.

        Args:
            round: Counted from 1.
            metrics: Equal on every rank, except that each rank has its own `seconds` and only the
                server has `wireless_seconds`.

        Return True on any rank to end the training after the next round. The run is then complete,
        with its final generator and scores.
        """

    def on_score(self, scores: Sequence[Mapping[str, Any]]) -> None:
        """Called with the lines of stats.jsonl of one score, equal on every rank."""

    def on_samples(self, round: int, images: Images) -> None:
        """Called on the server with the images of a grid in `samples/`, made of the same noise each
        time.

        Args:
            round: Number of completed rounds.
            images: uint8 or uint16, (N, C, H, W).
        """

    def on_checkpoint(self, round: int, directory: Path) -> None:
        """Called on the server when the checkpoint of a round is complete on disk.

        Checkpoints are written in the background, so this may be a few rounds later.

        Args:
            round: Number of completed rounds.
            directory: For example `runs/a/checkpoints/round_000100`. `checkpoint.keep_last` removes
                it later.
        """

    def on_run_end(self, result: Result) -> None:
        """Called when the run directory is complete."""

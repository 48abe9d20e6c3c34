"""A hyperparameter study in one process: several learning rates, each run ended early.

    mpirun -n 9 python study.py     # or: python study.py, on one process

A callback ends a run that is worse than the best one so far. `python -m fedgan_mpi compare
runs/rate-*` writes a report of all runs.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from mpi4py import MPI

import fedgan_mpi
from fedgan_mpi.callbacks import Callback

RATES = (1e-4, 2e-4, 4e-4)


class EndIfWorse(Callback):
    """Ends a run whose score after some rounds is above a limit."""

    def __init__(self, limit: float, after: int) -> None:
        """limit: highest score that goes on. after: round from which it applies."""
        self.limit, self.after = limit, after
        self.score = math.inf

    def on_score(self, scores: Sequence[Mapping[str, Any]]) -> None:
        self.score = scores[0]["value"]

    def on_round_end(self, round: int, metrics: Mapping[str, Any]) -> bool:
        return round >= self.after and self.score > self.limit


def study(rounds: int = 120) -> dict[float, float]:
    """Train with each rate; return rate -> last Fréchet distance."""
    found: dict[float, float] = {}
    for rate in RATES:
        limit = 1.5 * min(found.values(), default=math.inf)
        result = fedgan_mpi.train(
            {
                "run": {"name": f"rate-{rate:g}"},
                "training": {"rounds": rounds, "generator_lr": rate, "discriminator_lr": rate},
                "evaluation": {"every": rounds // 4},
            },
            callbacks=[EndIfWorse(limit, after=rounds // 2)],
        )
        found[rate] = result.scores[0]["value"]
    return found


if __name__ == "__main__":
    distances = study(*map(int, sys.argv[1:]))
    best = min(distances, key=distances.__getitem__)
    if MPI.COMM_WORLD.rank == 0:  # every rank has the same result
        print(f"learning rate {best:g}: Fréchet distance {distances[best]:.4g}")

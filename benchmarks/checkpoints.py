"""What a checkpoint after every round costs, in the default job.

    mpirun -n 9 python benchmarks/checkpoints.py [flags of fedgan_mpi]

One job, whose rounds alternate in blocks of six: a checkpoint after every round, or none. Seconds
are the server's, from one round's line in stats.jsonl to the next; each block's first two rounds
are left out, since a checkpoint is brought to disk while the rounds after it go on. Each block with
checkpoints is set against the mean of its two neighbours. Prints, as JSON, the median of these
ratios with quartiles, and the milliseconds of a round. Wanted: at most 1.05.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from typing import Any

import fedgan_mpi.training.environment  # noqa: F401 - before numpy and torch are loaded
from fedgan_mpi.__main__ import main
from fedgan_mpi.run.directory import Record
from fedgan_mpi.training.hooks import TrainingHooks

BLOCK, SKIPPED, PAIRS = 6, 2, 80


def has_checkpoints(round: int) -> bool:
    """Of the blocks, every second one."""
    return round // BLOCK % 2 == 1


def report(stamps: list[float]) -> dict[str, Any]:
    """stamps: seconds when the line of round 1, 2, … was written."""
    blocks = []
    for block in range(2, 2 * PAIRS + 3):  # the first two warm up
        # From the line of round r to the next lies what is kept of round r.
        rounds = range(block * BLOCK + SKIPPED, (block + 1) * BLOCK)
        blocks.append(statistics.mean(stamps[r] - stamps[r - 1] for r in rounds))
    without, with_ = blocks[::2], blocks[1::2]
    neighbours = [(before + after) / 2 for before, after in pairwise(without)]
    ratios = [one / other for one, other in zip(with_, neighbours, strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4)
    return {
        "with / without": round(median, 3),
        "quartiles": [round(low, 3), round(high, 3)],
        "all": [round(ratio, 2) for ratio in ratios],
        "ms without": round(1000 * statistics.median(without), 1),
        "ms with": round(1000 * statistics.median(with_), 1),
    }


def benchmark(flags: list[str]) -> int:
    stamps: list[float] = []
    honest = Record.round

    def stamped(record: Record, stats: dict[str, Any]) -> None:
        honest(record, stats)
        if record.run is not None:  # on the server
            stamps.append(time.perf_counter())

    Record.round = stamped  # type: ignore
    TrainingHooks._is_checkpoint_planned = lambda self, round: has_checkpoints(round)  # type: ignore
    rounds = BLOCK * (2 * PAIRS + 3) + 1
    with tempfile.TemporaryDirectory() as directory:
        job = [f"--training.rounds={rounds}", "--evaluation.every=0"]
        status = main([*job, f"--run.directory={directory}", *flags])
    if stamps:
        print(json.dumps(report(stamps)), flush=True)
    return status


if __name__ == "__main__":
    sys.exit(benchmark(sys.argv[1:]))

"""Measures the cost of a checkpoint after every round of the default job.

    mpirun -n 9 python benchmarks/checkpoints.py [flags of fedgan_mpi]

In one job, blocks of six rounds alternate: a checkpoint after every round, or none. The server's
seconds count from one line of stats.jsonl to the next. The first two rounds of a block are ignored,
because checkpoints are written in the background of later rounds. Each block with checkpoints is
divided by the mean of its two neighbours. Prints JSON: the median of these ratios with quartiles,
and the milliseconds of a round. Limit: 1.15.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from dataclasses import replace
from itertools import pairwise
from typing import Any

import common

from fedgan_mpi.__main__ import main
from fedgan_mpi.run.record import Record
from fedgan_mpi.training.hooks import TrainingHooks

BLOCK, IGNORED, PAIRS = 6, 2, 80


def has_checkpoint(round: int) -> bool:
    """Return whether the block of this round has checkpoints: every second one does."""
    return round // BLOCK % 2 == 1


def summarize(stamps: list[float]) -> dict[str, Any]:
    """stamps: the seconds at which the lines of rounds 1, 2, … were written."""
    blocks = []
    for block in range(2, 2 * PAIRS + 3):  # blocks 0 and 1 warm up
        # A checkpoint of round r is begun between the lines of rounds r and r + 1.
        rounds = range(block * BLOCK + IGNORED, (block + 1) * BLOCK)
        blocks.append(statistics.mean(stamps[r] - stamps[r - 1] for r in rounds))
    without, with_checkpoints = blocks[::2], blocks[1::2]
    neighbours = [(before + after) / 2 for before, after in pairwise(without)]
    ratios = [one / other for one, other in zip(with_checkpoints, neighbours, strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4)
    return {
        "with / without": round(median, 3),
        "quartiles": [round(low, 3), round(high, 3)],
        "all": [round(ratio, 2) for ratio in ratios],
        "ms without": common.median_ms(without, digits=1),
        "ms with": common.median_ms(with_checkpoints, digits=1),
    }


def benchmark(flags: list[str]) -> int:
    """Run the job and return its exit status."""
    stamps: list[float] = []
    write_round = Record.round

    def write_and_stamp(record: Record, stats: dict[str, Any]) -> None:
        write_round(record, stats)
        if record.run is not None:  # only the server writes
            stamps.append(time.perf_counter())

    Record.round = write_and_stamp  # type: ignore
    on_round_end = TrainingHooks.on_round_end

    def alternate(hooks: TrainingHooks, round: int) -> bool:
        config = hooks.context.config
        checkpoint = replace(config.checkpoint, every=int(has_checkpoint(round)))
        hooks.context = replace(hooks.context, config=replace(config, checkpoint=checkpoint))
        return on_round_end(hooks, round)

    TrainingHooks.on_round_end = alternate  # type: ignore
    rounds = BLOCK * (2 * PAIRS + 3) + 1
    with tempfile.TemporaryDirectory() as directory:
        job = [f"--training.rounds={rounds}", "--evaluation.every=0"]
        status = main([*job, f"--run.directory={directory}", *flags])
    if stamps:
        common.print_json(summarize(stamps))
    return status


if __name__ == "__main__":
    sys.exit(benchmark(sys.argv[1:]))

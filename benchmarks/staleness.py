"""Time to a score with stragglers, against `algorithm.staleness`: the embedded digits in a cell.

    python -m data_prep digits --devices 8 --out shards/digits
    python benchmarks/staleness.py --shards shards/digits --out runs/staleness

Two of eight devices compute ten times slower than the others. Trains the runs that do not exist
yet. Prints a table with means ± standard deviations over seeds, and draws staleness.png in the
directory of the runs. The target is the best score of the run whose best score is the greatest, so
that every run reaches it.
"""

from __future__ import annotations

import json

import numpy as np
import study
from numpy.typing import NDArray

from fedgan_mpi.report.costs import cost_to_target, cumulative_cost
from fedgan_mpi.report.history import History
from fedgan_mpi.run.figures import new_figure, write_figure

FAST = 2e9
RATES = [FAST / 10, FAST, FAST, FAST, FAST / 10, FAST, FAST, FAST]
RUNS = {
    **{f"serial {s}": [f"--algorithm.staleness={s}"] for s in (0, 1, 2, 4)},
    "parallel 0": ["--algorithm.schedule=parallel"],
    "parallel 4": ["--algorithm.schedule=parallel", "--algorithm.staleness=4"],
}
COMMON = [
    "--wireless.on=true",
    f"--wireless.device_macs_per_second={json.dumps(RATES)}",
    "--training.rounds=400",
    "--evaluation.every=20",
    "--checkpoint.every=0",
]


def main() -> None:
    runs = study.Study(__doc__, RUNS, COMMON, seeds=3)
    runs.train()
    histories = {name: runs.histories(name) for name in RUNS}
    target = max(min(run.values) for of_name in histories.values() for run in of_name)
    lines = []
    for name, of_name in histories.items():
        columns = (
            [cost_to_target(run, target, "rounds") for run in of_name],
            [cost_to_target(run, target, "wireless") for run in of_name],
            [min(run.values) for run in of_name],
            [wireless_seconds(run)[-1] for run in of_name],
        )
        lines.append([name, *(study.spread([float(x or 0) for x in each]) for each in columns)])
    print(f"Target: {target:.1f}")
    head = ["schedule, s", "rounds to target", "seconds to target", "best score", "seconds in all"]
    print(study.table(head, lines))
    figure = new_figure(6, 4)
    axes = figure.subplots()
    for name, (run, *_) in histories.items():
        axes.plot(wireless_seconds(run), run.values, label=name)
    axes.set(xlabel="wireless seconds (settings ours)", ylabel="distance", yscale="log")
    axes.legend()
    write_figure(figure, runs.out / "staleness.png")


def wireless_seconds(run: History) -> NDArray[np.float64]:
    """Return the seconds up to each score."""
    seconds = cumulative_cost(run, "wireless")
    assert seconds is not None
    return seconds


if __name__ == "__main__":
    main()

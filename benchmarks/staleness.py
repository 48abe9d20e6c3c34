"""Time to a score with stragglers, against `algorithm.staleness`: the embedded digits in a cell.

    python -m data_prep digits --devices 8 --out shards/digits
    python benchmarks/staleness.py --shards shards/digits --out runs/staleness

Two of eight devices compute ten times slower than the others. Prints the simulated times of rounds,
which need no training. Trains the runs that do not exist yet, all for about the same simulated
time, and prints a table with means ± standard deviations over seeds. Draws staleness.png in the
directory of the runs. The target is the best score of the run whose best score is the greatest, so
that every run reaches it.
"""

from __future__ import annotations

import json

import numpy as np
import study
from numpy.typing import NDArray

from fedgan_mpi.algorithms.ren import Ren
from fedgan_mpi.config import Config, WirelessConfig
from fedgan_mpi.nn.registry import build, count_parameters
from fedgan_mpi.report.costs import cost_to_target, cumulative_cost
from fedgan_mpi.report.history import History
from fedgan_mpi.run.figures import new_figure, write_figure
from fedgan_mpi.wireless.clock import Clock, make_clock
from fedgan_mpi.wireless.timeline import Timeline

FAST = 2e9
RATES = [FAST / 10, FAST, FAST, FAST, FAST / 10, FAST, FAST, FAST]
ROUNDS = {0: 200, 1: 400, 2: 600, 4: 1000}
"""Staleness -> rounds in about the same simulated time."""


def flags(staleness: int) -> list[str]:
    rounds = ROUNDS[staleness]
    chosen = (f"training.rounds={rounds}", f"evaluation.every={rounds // 20}")
    return [f"--algorithm.staleness={staleness}", *(f"--{flag}" for flag in chosen)]


RUNS = {
    **{f"serial {s}": flags(s) for s in ROUNDS},
    **{f"parallel {s}": ["--algorithm.schedule=parallel", *flags(s)] for s in (0, 4)},
}
COMMON = [
    *study.THREE_STEPS,
    "--wireless.on=true",
    f"--wireless.device_macs_per_second={json.dumps(RATES)}",
    "--checkpoint.every=0",
]


def main() -> None:
    runs = study.Study(__doc__, RUNS, COMMON, seeds=3)
    print(times(), flush=True)
    runs.train()
    histories = {name: runs.histories(name) for name in runs.names}
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


def times(rounds: int = 600) -> str:
    """Return a table of simulated times in the serial schedule."""
    wireless = WirelessConfig(device_macs_per_second=tuple(RATES))
    config = Config(wireless=wireless)
    clock = make_clock(config, Ren, (1, 16, 16), [200] * len(RATES), 0)
    theta, phi = map(count_parameters, build(config.model, (1, 16, 16)))
    lines = []
    for staleness in (0, 1, 2, 4, 8):
        timeline = make_timeline(clock, staleness, down=theta + phi, up=phi)
        started: dict[int, int] = {}
        ages = []
        for t in range(rounds):
            arrivals = timeline.round(t)
            for k in arrivals.in_flight:
                started.setdefault(k, t)
            ages += [t - started.pop(k) for k in arrivals.arrived]
        seconds = timeline.round(rounds - 1).end
        numbers = (seconds / rounds, len(ages) / rounds, len(ages) / seconds, np.mean(ages))
        lines.append([str(staleness), *(f"{x:.2f}" for x in numbers), str(max(ages))])
    head = ["s", "seconds per round", "uploads per round", "per second", "mean age", "oldest"]
    return study.table(head, lines)


def make_timeline(clock: Clock, staleness: int, *, down: int, up: int) -> Timeline:
    """Return the timeline of devices that all start as soon as they are idle."""

    def idle(t: int) -> list[int]:
        return [k for k in range(1, len(RATES) + 1) if k not in timeline.busy(t)]

    timeline = Timeline(clock, idle, staleness=staleness, is_parallel=False, down=down, up=up)
    return timeline


def wireless_seconds(run: History) -> NDArray[np.float64]:
    """Return the seconds up to each score."""
    seconds = cumulative_cost(run, "wireless")
    assert seconds is not None
    return seconds


if __name__ == "__main__":
    main()

"""Cost of a score: rounds, measured seconds, megabytes and wireless seconds."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fedgan_mpi.config import CHANNEL_POLICIES, Config, WirelessConfig
from fedgan_mpi.config.io import config_table
from fedgan_mpi.errors import UserError
from fedgan_mpi.report.history import History
from fedgan_mpi.run.directory import DEVICES

if TYPE_CHECKING:
    from fedgan_mpi.wireless.clock import Work

Cost = Literal["rounds", "seconds", "megabytes", "wireless"]
COSTS: tuple[Cost, ...] = get_args(Cost)

AXIS_LABELS: dict[Cost, str] = {
    "rounds": "rounds",
    "seconds": "measured seconds",
    "megabytes": "megabytes down and up, all devices",
    "wireless": "wireless seconds (settings ours)",
}

PHASES = {
    "seconds_downlink": "downlink",
    "seconds_local": "local rounds of devices",
    "seconds_uplink": "uplink",
    "seconds_server": "server",
}
"""Keys of stats.jsonl -> phase of a round."""

_KEYS = {
    "seconds": ["seconds"],
    "megabytes": ["bytes_down", "bytes_up"],
    "wireless": ["wireless_seconds"],
}
"""Keys of stats.jsonl that add up to each cost."""


def cumulative_cost(run: History, cost: Cost) -> NDArray[np.float64] | None:
    """Return the cost up to each of `run.values`; None if a round does not record it."""
    if cost == "rounds":
        return run.scored_rounds.astype(float)
    keys = _KEYS[cost]
    if any(line.get(key) is None for line in run.rounds for key in keys):
        return None
    per_round = [sum(line[key] for key in keys) for line in run.rounds]
    total = np.cumsum([0.0, *per_round])[run.scored_rounds]
    return total / 1e6 if cost == "megabytes" else total


def cost_to_target(run: History, target: float, cost: Cost) -> float | None:
    """Return the cost up to the first score at or below the target.

    None if the run does not reach the target or does not record the cost.
    """
    reached = np.flatnonzero(run.values <= target)
    total = cumulative_cost(run, cost)
    return None if total is None or not len(reached) else float(total[reached[0]])


@cache
def _count_work(run: Path, config: Config, image_shape: tuple[int, int, int], classes: int) -> Work:
    """Count the networks of a run once, for all cells. run: its path, to tell runs apart."""
    from fedgan_mpi.wireless.clock import count_work

    return count_work(config, image_shape, classes)


def retime(run: History, wireless: WirelessConfig) -> History:
    """Return the run with the wireless seconds that its rounds take in another cell.

    Training does not depend on the cell, so the stored participants suffice. Raises UserError
    without devices.json, if training depended on the original cell (policy or staleness), or if
    `wireless.compute` is "measured".
    """
    data, policy = run.device_data, run.experiment.participation.policy
    if data is None:
        raise UserError(f"{run.path / DEVICES} is missing, so the run cannot be timed in a cell")
    if policy in CHANNEL_POLICIES:
        raise UserError(
            f"{run.path} cannot be timed in another cell: participation.policy is {policy!r}, "
            "which depends on the cell"
        )
    if run.experiment.algorithm.staleness > 0:
        raise UserError(
            f"{run.path} cannot be timed in another cell: algorithm.staleness is above 0, so that "
            "training depends on the cell"
        )
    if wireless.compute == "measured":
        raise UserError("wireless.compute is 'measured', but must be 'macs' to time a stored run")
    from fedgan_mpi.algorithms.registry import algorithm_class
    from fedgan_mpi.wireless.clock import make_clock

    classes = len(data.class_names) if run.experiment.model.conditional else 0
    experiment = replace(run.experiment, wireless=wireless)
    has_devices = experiment.algorithm.traits.has_devices
    clock = make_clock(
        experiment,
        algorithm_class(experiment.algorithm.name),
        data.image_shape,
        data.images if has_devices else [sum(data.images)],
        classes,
        _count_work(
            run.path, replace(experiment, wireless=WirelessConfig()), data.image_shape, classes
        ),
    )
    rounds = [
        {**line, "wireless_seconds": clock.seconds(line["round"] - 1, line["participants"])}
        for line in run.rounds
    ]
    return replace(run, experiment=experiment, config=config_table(experiment), rounds=rounds)

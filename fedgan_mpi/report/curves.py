"""The charts of runs: losses, scores, seconds of each phase, and privacy."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fedgan_mpi.report.charts import COLORS, Chart, Line, Numbers, Panel
from fedgan_mpi.report.costs import AXIS_LABELS, COSTS, PHASES, Cost, cumulative_cost
from fedgan_mpi.report.grouping import Group
from fedgan_mpi.report.history import History, seconds_by_device

_MAX_POINTS = 600
"""A line of more rounds shows the means of equal parts."""


def losses_chart(run: History) -> Chart:
    """The mean losses of D and G against rounds."""
    labels = {"d_loss": "discriminator", "g_loss": "generator"}
    return _chart_of_rounds(run, "losses against rounds", "mean loss per round", labels)


def seconds_chart(run: History) -> Chart:
    """The seconds of each phase, stacked, and of the whole round, against rounds."""
    title, y_label = "seconds of each phase against rounds", "seconds per round"
    labels = {**PHASES, "seconds": "round, measured"}
    return _chart_of_rounds(run, title, y_label, labels, stacked=tuple(PHASES))


def devices_chart(run: History) -> Chart | None:
    """The seconds of each device's local rounds, stacked, against rounds.

    A device that is absent has 0. None for more devices than there are colors, or if the run does
    not record the seconds.
    """
    by_round = [seconds_by_device(line) for line in run.rounds]
    devices = sorted({k for seconds in by_round for k in seconds})
    if not 0 < len(devices) <= len(COLORS):
        return None
    rounds = _thin(np.array([line["round"] for line in run.rounds], float))
    lines = [
        Line(
            label=f"device {k}",
            x=rounds,
            y=_thin(np.array([seconds.get(k, 0.0) for seconds in by_round])),
            stacked=True,
        )
        for k in devices
    ]
    return Chart(
        title="seconds of each device's local rounds against rounds",
        y_label="seconds per round, all devices",
        panels=[Panel(x_label="rounds", lines=lines)],
    )


def privacy_chart(groups: Sequence[Group]) -> Chart | None:
    """ε against rounds; None if no run is private. A group is shown by its first run."""
    lines = [
        Line(label=group.label, x=_floats(rounds), y=_floats(spent))
        for group in groups
        if (privacy := group.runs[0].privacy)
        for rounds, spent in [zip(*privacy, strict=True)]
    ]
    if not lines:
        return None
    panel = Panel(x_label="rounds", lines=lines)
    return Chart(
        title="privacy spent against rounds", y_label="epsilon", panels=[panel], markers=True
    )


def scores_chart(groups: Sequence[Group]) -> Chart:
    """The Fréchet distance against each cost that all runs record.

    Each group is its mean over seeds, with the range of its seeds as a band.
    """
    runs = [run for group in groups for run in group.runs]
    costs = [cost for cost in COSTS if all(cumulative_cost(run, cost) is not None for run in runs)]
    if all(_sends_nothing(run) for run in runs):
        costs.remove("megabytes")
    panels = [
        Panel(x_label=AXIS_LABELS[cost], lines=[_line_of_group(group, cost) for group in groups])
        for cost in costs
    ]
    first = runs[0]
    return Chart(
        title="scores against cost",
        y_label=f"{first.metric}\n{first.scores[0]['samples']} images",
        panels=panels,
        log=True,
        markers=True,
        level=("floor: held-out real images", first.scores[0]["floor"]),
    )


def _line_of_group(group: Group, cost: Cost) -> Line:
    # Seeds share the scored rounds but not the seconds, so both coordinates are means.
    shared = min(len(run.values) for run in group.runs)
    values = np.array([run.values[:shared] for run in group.runs])
    spent = np.array([cumulative_cost(run, cost)[:shared] for run in group.runs]).mean(0)  # type: ignore[index]
    several = len(group.runs) > 1
    return Line(
        label=group.label + (f" ({len(group.runs)} seeds)" if several else ""),
        x=spent.tolist(),
        y=values.mean(0).tolist(),
        band=(values.min(0).tolist(), values.max(0).tolist()) if several else None,
    )


def _sends_nothing(run: History) -> bool:
    """Return whether no byte travels, as in `centralized`."""
    return all(line["bytes_down"] + line["bytes_up"] == 0 for line in run.rounds)


def _chart_of_rounds(
    run: History, title: str, y_label: str, labels: dict[str, str], stacked: Sequence[str] = ()
) -> Chart:
    """Plot numbers of stats.jsonl against rounds. labels: key -> label."""
    rounds = np.array([line["round"] for line in run.rounds], float)
    lines = [
        Line(
            label=label,
            x=_thin(rounds),
            y=_thin(np.array([line[key] for line in run.rounds], float)),
            stacked=key in stacked,
        )
        for key, label in labels.items()
    ]
    return Chart(title=title, y_label=y_label, panels=[Panel(x_label="rounds", lines=lines)])


def _thin(values: NDArray[np.float64]) -> Numbers:
    """Return the values, or the means of _MAX_POINTS equal parts; NaN counts in no mean."""
    count = min(len(values), _MAX_POINTS)
    ends = [len(values) * n // count for n in range(count + 1)] if count else []
    parts = [values[start:end] for start, end in pairwise(ends)]
    return [float(np.nanmean(part)) if np.isfinite(part).any() else float("nan") for part in parts]


def _floats(values: Sequence[float]) -> Numbers:
    return [float(value) for value in values]

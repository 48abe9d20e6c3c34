"""Plots of losses and scores, as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedgan_mpi.report.costs import AXIS_LABELS, COSTS, Cost, cumulative_cost
from fedgan_mpi.report.grouping import Group
from fedgan_mpi.report.history import History
from fedgan_mpi.run.figures import label_text, new_figure, write_figure


def draw_losses(path: Path, run: History) -> None:
    """Plot the mean losses of D and G against rounds."""
    figure, (axes,) = _make_figure(1)
    t = [line["round"] for line in run.rounds]
    for key, label in (("d_loss", "discriminator"), ("g_loss", "generator")):
        losses = [np.nan if line[key] is None else line[key] for line in run.rounds]
        axes.plot(t, losses, label=label, linewidth=1)
    axes.set(title="Loss", xlabel="rounds", ylabel="mean loss per round")
    axes.legend(frameon=False)
    write_figure(figure, path)


def draw_scores(path: Path, groups: Sequence[Group]) -> None:
    """Plot the Fréchet distance against each cost that all runs record.

    Each group is its mean over seeds, with the range of its seeds shaded.
    """
    runs = [run for group in groups for run in group.runs]
    costs = [cost for cost in COSTS if all(cumulative_cost(run, cost) is not None for run in runs)]
    if all(_sends_nothing(run) for run in runs):
        costs.remove("megabytes")
    figure, panels = _make_figure(len(costs))
    first = runs[0]
    for axes, cost in zip(panels, costs, strict=True):
        for group in groups:
            _draw_group(axes, group, cost)
        floor = first.scores[0]["floor"]
        axes.axhline(floor, color="gray", linestyle=":", label="floor: held-out real images")
        axes.set(xlabel=AXIS_LABELS[cost], yscale="log")
        axes.grid(alpha=0.25, which="both", linewidth=0.5)
    panels[0].set_ylabel(f"{label_text(first.metric or '')}\n{first.scores[0]['samples']} images")
    handles, labels = panels[0].get_legend_handles_labels()
    columns = min(len(labels), 4)
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False)
    write_figure(figure, path)


def _draw_group(axes: Any, group: Group, cost: Cost) -> None:
    # Seeds share the scored rounds but not the seconds, so both coordinates are means.
    shared = min(len(run.values) for run in group.runs)
    values = np.array([run.values[:shared] for run in group.runs])
    spent = np.array([cumulative_cost(run, cost)[:shared] for run in group.runs]).mean(0)  # type: ignore[index]
    seeds = f" ({len(group.runs)} seeds)" if len(group.runs) > 1 else ""
    (line,) = axes.plot(
        spent,
        values.mean(0),
        marker="o",
        markersize=3,
        linewidth=1.5,
        label=label_text(group.label) + seeds,
    )
    if len(group.runs) > 1:
        axes.fill_between(spent, values.min(0), values.max(0), color=line.get_color(), alpha=0.15)


def _sends_nothing(run: History) -> bool:
    """Return whether no byte travels, as in `centralized`."""
    return all(line["bytes_down"] + line["bytes_up"] == 0 for line in run.rounds)


def _make_figure(panels: int) -> tuple[Any, list[Any]]:
    figure = new_figure(4.6 * max(panels, 2) if panels > 1 else 6.5, 4.2)
    return figure, list(figure.subplots(1, panels, squeeze=False, sharey=True)[0])

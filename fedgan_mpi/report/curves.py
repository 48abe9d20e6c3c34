"""Curves as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedgan_mpi.files import complete_or_absent
from fedgan_mpi.report.history import COSTS, Group, History


def draw_losses(path: Path, run: History) -> None:
    """Both players' losses against rounds."""
    figure, (axes,) = _figure(1)
    t = [line["round"] for line in run.rounds]
    for key, label in (("d_loss", "discriminator"), ("g_loss", "generator")):
        losses = [np.nan if line[key] is None else line[key] for line in run.rounds]
        axes.plot(t, losses, label=label, linewidth=1)
    axes.set(title="Loss", xlabel="rounds", ylabel="mean loss of a round")
    axes.legend(frameon=False)
    write_figure(figure, path)


def draw_scores(path: Path, groups: Sequence[Group]) -> None:
    """The Fréchet distance against everything that it cost; a group's mean, and the range of its
    seeds."""
    first = groups[0].runs[0]
    told = [of for of in COSTS if all(run.cost(of) is not None for g in groups for run in g.runs)]
    if all(_free(run) for group in groups for run in group.runs):
        told = [of for of in told if of != "megabytes"]
    figure, all_axes = _figure(len(told))
    for axes, of in zip(all_axes, told, strict=True):
        for group in groups:
            _draw_group(axes, group, of)
        floor = first.scores[0]["floor"]
        axes.axhline(floor, color="gray", linestyle=":", label="held-out real images")
        axes.set(xlabel=COSTS[of], yscale="log")
        axes.grid(alpha=0.25, which="both", linewidth=0.5)
    all_axes[0].set_ylabel(f"{first.metric}\n{first.scores[0]['samples']} images")
    handles, labels = all_axes[0].get_legend_handles_labels()
    columns = min(len(labels), 4)
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False)
    write_figure(figure, path)


def _draw_group(axes: Any, group: Group, of: str) -> None:
    """Seeds are scored after the same rounds, but not at the same seconds: mean of both."""
    shared = min(len(run.values) for run in group.runs)
    values = np.array([run.values[:shared] for run in group.runs])
    spent = np.array([run.cost(of)[:shared] for run in group.runs]).mean(0)  # type: ignore[index]
    seeds = f" ({len(group.runs)} seeds)" if len(group.runs) > 1 else ""
    (line,) = axes.plot(
        spent, values.mean(0), marker="o", markersize=3, linewidth=1.5, label=group.label + seeds
    )
    if len(group.runs) > 1:
        axes.fill_between(spent, values.min(0), values.max(0), color=line.get_color(), alpha=0.15)


def _free(run: History) -> bool:
    """Whether nothing travels, as in one process."""
    return all(line["bytes_down"] + line["bytes_up"] == 0 for line in run.rounds)


def _figure(panels: int) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure  # not pyplot, which is slow to import

    size = (4.6 * max(panels, 2) if panels > 1 else 6.5, 4.2)
    figure = Figure(figsize=size, layout="constrained")
    return figure, list(figure.subplots(1, panels, squeeze=False, sharey=True)[0])


def write_figure(figure: Any, path: Path) -> None:
    """As a PNG file, whole or absent."""
    with complete_or_absent(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)

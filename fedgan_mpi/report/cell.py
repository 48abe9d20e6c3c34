"""The simulated cell of a run, and its picture: positions, uplink rates and participation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedgan_mpi.config import CHANNEL_POLICIES
from fedgan_mpi.report.history import History
from fedgan_mpi.run.figures import new_figure, write_figure
from fedgan_mpi.wireless.cell import Cell

_MIN_AREA, _AREA_RANGE = 30, 700
"""Dot area in points² without participation, and the range up to the most frequent participant."""


def simulated_cell(run: History) -> Cell | None:
    """Return the cell of a run; None if neither its clock nor its participation policy uses it."""
    experiment = run.experiment
    uses_cell = experiment.wireless.on or experiment.participation.policy in CHANNEL_POLICIES
    if run.fairness is None or run.device_data is None or not uses_cell:
        return None
    return Cell(experiment.wireless, len(run.device_data.images))


def draw_cell(path: Path, cell: Cell, participations: Sequence[int], participants: int) -> None:
    """Draw the disc from above, with the server in its centre.

    `participations` counts the rounds of device 1, 2, …; `participants` is N of a round, which
    determines the uplink rates.
    """
    from matplotlib.patches import Circle

    figure = new_figure(6.2, 5.2)
    axes = figure.subplots()
    x = cell.distances_m * np.cos(cell.angles)
    y = cell.distances_m * np.sin(cell.angles)
    radius = cell.config.radius_m
    axes.add_patch(Circle((0, 0), radius, fill=False, color="gray", linestyle=":"))
    axes.plot(0, 0, marker="^", markersize=11, color="black")
    axes.annotate("server", (0, 0), xytext=(8, -12), textcoords="offset points")
    relative = np.array(participations) / max(1, max(participations))
    dots = axes.scatter(
        x, y, c=cell.uplink_rates(participants) / 1e6, s=_MIN_AREA + _AREA_RANGE * relative,
        cmap="viridis", edgecolors="black", linewidths=0.8, alpha=0.9,
    )  # fmt: skip
    for k, position in enumerate(zip(x, y, strict=True)):
        axes.annotate(
            f"{k + 1}: {participations[k]}", position, xytext=(0, -22),
            textcoords="offset points", ha="center", fontsize=8,
        )  # fmt: skip
    figure.colorbar(dots, label=f"mean uplink rate, Mbit/s, with {participants} participants")
    axes.set(xlim=(-1.1 * radius, 1.1 * radius), ylim=(-1.1 * radius, 1.1 * radius))
    axes.set(aspect="equal", xlabel="m", ylabel="m")
    axes.set_title("device: rounds of participation (settings ours)", fontsize=10)
    write_figure(figure, path)

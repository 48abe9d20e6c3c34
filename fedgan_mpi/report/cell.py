"""The simulated cell as a picture: where devices are, how fast they send, how often they took
part."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedgan_mpi.report.curves import write_figure
from fedgan_mpi.wireless.cell import Cell

_LARGEST = 700  # area of a dot that took part in every round, points²


def draw_cell(path: Path, cell: Cell, times: Sequence[int], participants: int) -> None:
    """The disc from above, the server in its middle. times: rounds that device 1, 2, … took part
    in; participants: of a round, who share the band."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Circle

    figure = Figure(figsize=(6.2, 5.2), layout="constrained")
    axes = figure.subplots()
    x = cell.distances_m * np.cos(cell.angles)
    y = cell.distances_m * np.sin(cell.angles)
    radius = cell.config.radius_m
    axes.add_patch(Circle((0, 0), radius, fill=False, color="gray", linestyle=":"))
    axes.plot(0, 0, marker="^", markersize=11, color="black")
    axes.annotate("server", (0, 0), xytext=(8, -12), textcoords="offset points")
    share = np.array(times) / max(1, max(times))
    dots = axes.scatter(
        x, y, c=cell.up_rates(participants) / 1e6, s=30 + _LARGEST * share,
        cmap="viridis", edgecolors="black", linewidths=0.8, alpha=0.9,
    )  # fmt: skip
    for k, place in enumerate(zip(x, y, strict=True)):
        axes.annotate(
            f"{k + 1}: {times[k]}", place, xytext=(0, -22), textcoords="offset points",
            ha="center", fontsize=8,
        )  # fmt: skip
    figure.colorbar(dots, label=f"mean rate up, Mbit/s, {participants} sharing the band")
    axes.set(xlim=(-1.1 * radius, 1.1 * radius), ylim=(-1.1 * radius, 1.1 * radius))
    axes.set(aspect="equal", xlabel="m", ylabel="m")
    axes.set_title("device: rounds it took part in (settings ours)", fontsize=10)
    write_figure(figure, path)

"""Line charts: what they show, and their drawing as PNG images."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedgan_mpi.run.figures import label_text, new_figure

if TYPE_CHECKING:  # it is slow to import
    from matplotlib.figure import Figure

Numbers = list[float]
"""NaN is a gap in a line."""
COLORS = [
    "#3b82c4", "#e07b39", "#3a9d5d", "#8a6fd1", "#d1495b", "#2aa5a5", "#b08a1f", "#c8509b",
]  # fmt: skip
"""Colors that are readable on a white and on a black page."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a panel."""

    label: str
    x: Numbers
    y: Numbers
    band: tuple[Numbers, Numbers] | None = None
    """Lowest and highest values, drawn as a band."""
    stacked: bool = False
    """Whether the line is an area on top of the areas before it."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Lines with common axes."""

    x_label: str
    lines: list[Line]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Panels side by side with a common vertical axis."""

    title: str
    y_label: str
    panels: list[Panel]
    log: bool = False
    """Whether the vertical axis is logarithmic."""
    markers: bool = False
    """Whether every value has a dot."""
    level: tuple[str, float] | None = None
    """Label and value of a dotted horizontal line."""

    @property
    def labels(self) -> list[str]:
        """The labels of the lines, which are the same in all panels."""
        return [line.label for line in self.panels[0].lines]


def color_of(line: int) -> str:
    """Return the color of the line with this index."""
    return COLORS[line % len(COLORS)]


def draw(chart: Chart) -> Figure:
    """Draw a chart with Matplotlib."""
    count = len(chart.panels)
    figure = new_figure(4.6 * max(count, 2) if count > 1 else 6.5, 4.2)
    all_axes = figure.subplots(1, count, squeeze=False, sharey=True)[0]
    for axes, panel in zip(all_axes, chart.panels, strict=True):
        _draw_panel(axes, panel, chart)
    all_axes[0].set_ylabel("\n".join(map(label_text, chart.y_label.split("\n"))))
    handles, labels = all_axes[0].get_legend_handles_labels()
    columns = min(len(labels), 4)
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False)
    return figure


def to_png(figure: Figure) -> bytes:
    """Return a figure as the content of a PNG file."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    return content.getvalue()


def _draw_panel(axes: Any, panel: Panel, chart: Chart) -> None:
    base = np.zeros(len(panel.lines[0].x))
    for n, line in enumerate(panel.lines):
        color, label = color_of(n), label_text(line.label)
        if line.stacked:
            top = base + np.nan_to_num(line.y)
            axes.fill_between(line.x, base, top, color=color, label=label, linewidth=0, alpha=0.6)
            base = top
            continue
        marker = "o" if chart.markers else None
        width = 1.5 if chart.markers else 1
        axes.plot(
            line.x, line.y, color=color, label=label, linewidth=width, marker=marker, markersize=3
        )
        if line.band is not None:
            axes.fill_between(line.x, *line.band, color=color, alpha=0.15)
    if chart.level is not None:
        label, value = chart.level
        axes.axhline(value, color="gray", linestyle=":", label=label_text(label))
    axes.set(xlabel=panel.x_label, yscale="log" if chart.log else "linear")
    axes.grid(alpha=0.25, which="both", linewidth=0.5)

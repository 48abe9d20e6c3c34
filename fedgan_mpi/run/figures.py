"""Figures as PNG files. They need no display, and their labels are shown as they are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fedgan_mpi.files import complete_or_absent
from fedgan_mpi.run.output import printable

if TYPE_CHECKING:  # it is slow to import
    from matplotlib.figure import Figure

_MAX_LABEL = 60  # characters


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure. width, height: inches."""
    # Not pyplot, which is slow to import and may need the backend of a notebook.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def write_figure(figure: Figure, path: Path, *, stream: bool = False) -> None:
    """Write a figure as a PNG file, complete or not at all. stream: see `complete_or_absent`."""
    with complete_or_absent(path, stream=stream) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def label_text(name: str) -> str:
    """Return a name as a label that Matplotlib shows as it is.

    Dollar signs would start a formula, and a legend leaves out names with an initial underscore.
    A long name is cut: it would leave no space for the figure.
    """
    if len(name) > _MAX_LABEL:
        name = name[: _MAX_LABEL - 1] + "…"
    text = printable(name).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text

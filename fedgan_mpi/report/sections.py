"""Sections of a run's page: samples, cost, seconds, participation, classes and privacy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedgan_mpi.report.cell import draw_cell, simulated_cell
from fedgan_mpi.report.charts import Chart, draw, to_png
from fedgan_mpi.report.costs import PHASES
from fedgan_mpi.report.curves import devices_chart, privacy_chart, seconds_chart
from fedgan_mpi.report.grouping import Group
from fedgan_mpi.report.history import History, seconds_by_device
from fedgan_mpi.report.web.page import (
    Cell,
    Row,
    render_chart,
    render_image,
    render_slides,
    render_table,
    render_text,
)
from fedgan_mpi.run.image_grids import round_of_grid

_MAX_GRIDS = 12
_MAX_GRID_BYTES = 6_000_000
"""Of all grids on a page; the first and the last are always shown."""
_MAX_CELLS = 2000
"""Of the table of classes on devices."""


def samples_section(run: History, *, label: str = "", pages: int = 1) -> str:
    """Return evenly chosen sample grids with a slider.

    label: precedes the round in captions. pages: number of runs that share the space.
    """
    grids = _choose_grids(run.grids, _MAX_GRID_BYTES // pages)
    captions = [f"{label}after round {round_of_grid(grid)}" for grid in grids]
    return render_slides(grids, captions) if grids else ""


def cost_section(run: History) -> str:
    """Return a table of seconds and megabytes, in total and per round."""
    names = {
        "seconds": "time, measured",
        "wireless_seconds": "time, simulated cell",
        "bytes_down": "sent down",
        "bytes_up": "sent up",
        "bytes_down_other": "sent down, beyond the payload",
        "bytes_up_other": "sent up, beyond the payload",
    }
    rows: list[Row] = []
    for key, name in names.items():
        values = [line.get(key) for line in run.rounds]
        numbers = [value for value in values if value is not None]
        total = sum(numbers)
        if total == 0 or len(numbers) < len(values):
            continue
        form = _format_megabytes if key.startswith("bytes") else _format_seconds
        rows.append(
            {
                "quantity": name,
                "total": Cell(text=form(total), value=total),
                "per round": Cell(text=form(total / len(numbers)), value=total / len(numbers)),
            }
        )
    return render_table(rows) if rows else ""


def seconds_section(run: History) -> str:
    """Return the seconds of each phase and of each device: a table, and charts against rounds."""
    if not run.rounds:
        return ""
    note = (
        "Phases overlap, so their sum may exceed the measured time. Waiting for other ranks counts "
        "in no phase."
    )
    table = render_table([phases_row(run, key, name) for key, name in PHASES.items()])
    devices = devices_chart(run)
    charts = [seconds_chart(run), *([] if devices is None else [devices])]
    return render_text(note) + table + "".join(map(_chart, charts))


def phases_row(run: History, key: str, name: str) -> Row:
    """Return the total of a phase's seconds, their mean, and their share of the measured time."""
    total, measured = (sum(line[each] for line in run.rounds) for each in (key, "seconds"))
    mean, share = total / len(run.rounds), total / measured if measured else 0.0
    return {
        "phase": name,
        "total": Cell(text=_format_seconds(total), value=total),
        "per round": Cell(text=_format_seconds(mean), value=mean),
        "of the measured time": Cell(text=f"{share:.1%}", value=share, share=min(share, 1.0)),
    }


def participation_section(run: History) -> str:
    """Return the table of devices; draw cell.png if the run has a cell."""
    fairness, data = run.fairness, run.device_data
    assert fairness is not None and data is not None
    cell = simulated_cell(run)
    rates = None if cell is None else cell.uplink_rates(run.participants)
    seconds = seconds_of_devices(run)
    most = max(seconds.values(), default=0.0)
    rows: list[Row] = []
    for k, images in enumerate(data.images, start=1):
        rounds = fairness.participations[k - 1]
        row: dict[str, str | Cell] = {"device": Cell(text=str(k), value=k)}
        row |= {"images": f"{images:,}", "rounds": str(rounds)}
        if cell is not None and rates is not None:
            row["distance, m"] = f"{cell.distances_m[k - 1]:.0f}"
            row["mean uplink rate, Mbit/s"] = f"{rates[k - 1] / 1e6:.2f}"
        if most > 0:
            total = seconds.get(k, 0.0)
            row["local rounds, s"] = Cell(text=f"{total:,.3f}", value=total, share=total / most)
        rows.append(row)
    section = render_text(fairness.summary()) + render_table(rows)
    if cell is not None:
        path = run.path / "cell.png"
        draw_cell(path, cell, fairness.participations, run.participants)
        section += render_image(path, "the cell: devices, uplink rates and participation")
    return section


def seconds_of_devices(run: History) -> dict[int, float]:
    """Return device -> seconds of all its local rounds. Empty if the run does not record them."""
    totals: dict[int, float] = {}
    for line in run.rounds:
        for k, seconds in seconds_by_device(line).items():
            totals[k] = totals.get(k, 0.0) + seconds
    return totals


def classes_section(run: History) -> str:
    """Return the share of each class in data and training, and its images on each device."""
    data, fairness = run.device_data, run.fairness
    if data is None or not data.class_names:
        return ""
    held = [sum(images) for images in zip(*data.histograms, strict=True)]
    total = max(sum(held), 1)
    seen = fairness.classes_seen if fairness is not None else []
    largest = max([*(images / total for images in held), *seen]) or 1.0
    rows: list[Row] = []
    for n, name in enumerate(data.class_names):
        row: dict[str, str | Cell] = {"class": name, "images": f"{held[n]:,}"}
        shares = {"share in data": held[n] / total}
        if seen:
            shares["share in training"] = seen[n]
        row |= {
            head: Cell(text=f"{share:.1%}", value=share, share=share / largest)
            for head, share in shares.items()
        }
        rows.append(row)
    section = render_table(rows)
    if len(data.images) * len(data.class_names) <= _MAX_CELLS:
        section += render_text("Images of each class on each device:")
        section += render_table(_device_rows(data.class_names, data.histograms))
    return section


def _device_rows(names: Sequence[str], histograms: Sequence[Sequence[int]]) -> list[Row]:
    most = max((max(histogram) for histogram in histograms), default=0) or 1
    # Two classes may have one name, but a row has a key for each.
    heads = [name if names.count(name) == 1 else f"{name} ({n})" for n, name in enumerate(names)]
    return [
        {"device": Cell(text=str(k), value=k)}
        | {
            head: Cell(text=f"{images:,}", value=images, shade=0.6 * images / most)
            for head, images in zip(heads, histogram, strict=True)
        }
        for k, histogram in enumerate(histograms, start=1)
    ]


def privacy_section(groups: Sequence[Group]) -> str:
    """Return ε after the last scored round, and ε against rounds; empty if no run is private."""
    chart = privacy_chart(groups)
    if chart is None:
        return ""
    rows: list[Row] = []
    for group in groups:
        run = group.runs[0]
        if run.privacy:
            t, spent = run.privacy[-1]
            rows.append(
                {
                    "configuration": group.label,
                    "round": str(t),
                    "ε": Cell(text=f"{spent:.4g}", value=spent),
                    "δ": f"{run.experiment.algorithm.delta:g}",
                }
            )
    note = "Privacy spent by one device's whole shard, for the updates of D only."
    return render_text(note) + render_table(rows) + _chart(chart)


def _chart(chart: Chart) -> str:
    return render_chart(chart, to_png(draw(chart)))


def _choose_grids(grids: Sequence[Path], most_bytes: int) -> list[Path]:
    """Return evenly chosen grids with the first and the last, as many as there is space for."""
    if len(grids) < 2:
        return list(grids)
    fitting = most_bytes // max(grids[-1].stat().st_size, 1)
    count = min(len(grids), max(2, min(_MAX_GRIDS, fitting)))
    return [grids[n * (len(grids) - 1) // (count - 1)] for n in range(count)]


def _format_seconds(seconds: float) -> str:
    return f"{_four_digits(seconds)} s"


def _format_megabytes(nbytes: float) -> str:
    return f"{_four_digits(nbytes / 1e6)} MB"


def _four_digits(value: float) -> str:
    """Return a number with four digits or more, and without an exponent if it is large."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"

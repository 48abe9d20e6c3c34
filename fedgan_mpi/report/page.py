"""The report of one run: report.html with its plots."""

from __future__ import annotations

import html
from pathlib import Path

from fedgan_mpi.report.cell import draw_cell, simulated_cell
from fedgan_mpi.report.curves import draw_losses, draw_scores
from fedgan_mpi.report.fairness import Fairness
from fedgan_mpi.report.grouping import Group
from fedgan_mpi.report.history import History, read_history
from fedgan_mpi.report.html_page import (
    Row,
    render_figure,
    render_image,
    render_table,
    write_page,
)
from fedgan_mpi.run.image_grids import round_of_grid


def write_report(run: Path) -> None:
    """Write report.html, losses.png, and curves.png and cell.png if they apply, into the run."""
    history = read_history(run)
    draw_losses(run / "losses.png", history)
    config = (run / "config.toml").read_text(encoding="utf-8")
    sections = {
        "Scores": _scores_section(history),
        "Samples": _samples_section(history),
        "Losses": render_image(run / "losses.png", "losses against rounds"),
        "Cost": render_table(_cost_rows(history)),
    }
    fairness = history.fairness
    if fairness is not None:
        sections["Participation"] = _participation_section(history, fairness)
    sections["Configuration"] = f"<pre>{html.escape(config)}</pre>"
    write_page(run / "report.html", history.name, sections)


def _scores_section(history: History) -> str:
    if not history.scores:
        return "<p>No scores: the shards have no feature extractor or no held-out images.</p>"
    path = history.path / "curves.png"
    draw_scores(path, [Group(label="generated", runs=[history])])
    return render_table(_score_rows(history)) + render_image(path, "scores against cost")


def _score_rows(history: History) -> list[Row]:
    """Return one row per metric: its last value, and its value at the best Fréchet distance."""
    best = min(range(len(history.values)), key=lambda n: history.values[n])
    rows = []
    for name in dict.fromkeys(line["metric"] for line in history.scores):
        lines = [line for line in history.scores if line["metric"] == name]
        rows.append(
            {
                "metric": name,
                "final": f"{lines[-1]['value']:.4g}",
                f"best, round {lines[best]['round']}": f"{lines[best]['value']:.4g}",
                "floor: held-out real images": f"{lines[-1]['floor']:.4g}",
                "images": str(lines[-1]["samples"]),
            }
        )
    return rows


def _samples_section(history: History) -> str:
    grids = history.grids
    first_and_last = dict.fromkeys([grids[0], grids[-1]] if grids else [])
    figures = [render_figure(path, f"after round {round_of_grid(path)}") for path in first_and_last]
    film = history.path / "training.gif"
    if film.is_file():
        figures.append(render_figure(film, "all grids in order"))
    return "".join(figures)


def _cost_rows(history: History) -> list[Row]:
    keys = ["seconds", "seconds_downlink", "seconds_local", "seconds_uplink", "seconds_server"]
    if all("wireless_seconds" in line for line in history.rounds):
        keys.append("wireless_seconds")
    totals = {key: f"{sum(line[key] for line in history.rounds):.4g}" for key in keys}
    for key in ("bytes_down", "bytes_up"):
        totals[key] = f"{sum(line[key] for line in history.rounds):,}"
    return [{"quantity": key.replace("_", " "), "total": total} for key, total in totals.items()]


def _participation_section(history: History, fairness: Fairness) -> str:
    """Return the tables of devices and classes; draw cell.png if the run has a cell."""
    assert history.device_data is not None
    cell = simulated_cell(history)
    rates = None if cell is None else cell.uplink_rates(history.participants)
    rows = []
    for k, images in enumerate(history.device_data.images):
        rounds = str(fairness.participations[k])
        row = {"device": str(k + 1), "images": f"{images:,}", "rounds": rounds}
        if cell is not None and rates is not None:
            row["distance, m"] = f"{cell.distances_m[k]:.0f}"
            row["mean uplink rate, Mbit/s"] = f"{rates[k] / 1e6:.2f}"
        rows.append(row)
    section = f"<p>{html.escape(fairness.summary())}</p>{render_table(rows)}"
    if fairness.classes_seen:
        names = history.device_data.class_names
        shares = zip(names, fairness.classes_held, fairness.classes_seen, strict=True)
        section += "<p>" + render_table(
            [
                {"class": name, "share in data": f"{held:.1%}", "share in training": f"{seen:.1%}"}
                for name, held, seen in shares
            ]
        )
    if cell is not None:
        path = history.path / "cell.png"
        draw_cell(path, cell, fairness.participations, history.participants)
        section += render_image(path, "the cell: devices, uplink rates and participation")
    return section

"""The report of one run: report.html with its plots."""

from __future__ import annotations

from pathlib import Path

from fedgan_mpi.report.charts import draw
from fedgan_mpi.report.curves import losses_chart, scores_chart
from fedgan_mpi.report.grouping import Group
from fedgan_mpi.report.history import History, read_history
from fedgan_mpi.report.sections import (
    classes_section,
    cost_section,
    participation_section,
    privacy_section,
    samples_section,
    seconds_section,
)
from fedgan_mpi.report.settings import settings_section
from fedgan_mpi.report.web.page import (
    Cell,
    Row,
    render_chart,
    render_table,
    render_text,
    write_page,
)
from fedgan_mpi.run.figures import write_figure


def write_report(run: Path) -> None:
    """Write report.html, losses.png, and curves.png and cell.png if they apply, into the run."""
    history = read_history(run)
    losses = losses_chart(history)
    write_figure(draw(losses), run / "losses.png")
    sections = {
        "Scores": _scores_section(history),
        "Samples": samples_section(history),
        "Losses": render_chart(losses, (run / "losses.png").read_bytes()),
        "Cost": cost_section(history),
        "Where the seconds went": seconds_section(history),
        "Participation": "" if history.fairness is None else participation_section(history),
        "Class balance": classes_section(history),
        "Privacy": privacy_section([Group(label=history.name, runs=[history])]),
        "Configuration": settings_section(
            history, (run / "config.toml").read_text(encoding="utf-8")
        ),
    }
    write_page(run / "report.html", history.name, sections, _summary(history))


def _summary(history: History) -> str:
    traits, data = history.experiment.algorithm.traits, history.device_data
    words = [history.experiment.algorithm.name, f"{len(history.rounds)} rounds"]
    if data is not None and traits.has_devices:
        words.insert(1, f"{len(data.images)} devices")
    return f"{', '.join(words)}, {sum(line['seconds'] for line in history.rounds):,.1f} s"


def _scores_section(history: History) -> str:
    if not history.scores:
        return render_text("No scores: the shards have no feature extractor or no held-out images.")
    path = history.path / "curves.png"
    chart = scores_chart([Group(label="generated", runs=[history])])
    write_figure(draw(chart), path)
    return render_table(_score_rows(history)) + render_chart(chart, path.read_bytes())


def _score_rows(history: History) -> list[Row]:
    """Return one row per metric: its last value, and its value at the best Fréchet distance."""
    best = int(history.scored_rounds[history.values.argmin()])
    rows: list[Row] = []
    for name in dict.fromkeys(line["metric"] for line in history.scores):
        lines = [line for line in history.scores if line["metric"] == name]
        at_best = next((line["value"] for line in lines if line["round"] == best), None)
        values = {
            "final": lines[-1]["value"],
            f"best, round {best}": at_best,
            "floor: held-out real images": lines[-1]["floor"],
        }
        cells = {
            head: "–" if value is None else Cell(text=f"{value:.4g}", value=value)
            for head, value in values.items()
        }
        rows.append({"metric": name, **cells, "images": str(lines[-1]["samples"])})
    return rows

"""The comparison of several runs: a table, plots and one HTML page."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from pathlib import Path

from fedgan_mpi.files import explain_write_errors, write_complete
from fedgan_mpi.report.charts import draw
from fedgan_mpi.report.costs import PHASES, Cost, cost_to_target, cumulative_cost
from fedgan_mpi.report.curves import scores_chart
from fedgan_mpi.report.grouping import Group, check_comparable, group_runs
from fedgan_mpi.report.history import History, read_history
from fedgan_mpi.report.sections import privacy_section, samples_section
from fedgan_mpi.report.settings import differences_section
from fedgan_mpi.report.web.page import (
    Cell,
    Row,
    render_chart,
    render_table,
    render_text,
    write_page,
)
from fedgan_mpi.run.figures import write_figure

TextRow = dict[str, str]
"""Column head -> cell."""
_COST_COLUMNS: dict[Cost, str] = {
    "rounds": "rounds to target",
    "seconds": "seconds to target",
    "megabytes": "MB to target",
    "wireless": "wireless s to target",
}


def write_comparison(
    paths: Sequence[Path], out: Path, target: float | None = None
) -> list[TextRow]:
    """Write table.csv, curves.png and index.html of several runs, and return the table.

    `target` is the score to which costs are measured. The default is the best score that every
    configuration reaches, as a mean over its seeds. Raises UserError before it writes anything if
    the scores of the runs are not comparable.
    """
    runs = [read_history(path) for path in paths]
    check_comparable(runs)
    groups = group_runs(runs)
    if target is None:
        target = max(statistics.mean(run.values.min() for run in group.runs) for group in groups)
    rows = _table_rows(groups, target)
    with explain_write_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        chart = scores_chart(groups)
        write_figure(draw(chart), out / "curves.png")
        write_complete(out / "table.csv", _to_csv(rows).encode(errors="backslashreplace"))
        sections = {
            "Scores": render_text(_table_notes(runs[0], target)) + render_table(rows),
            "Curves": render_chart(chart, (out / "curves.png").read_bytes()),
            "Samples": "".join(_samples(group, len(groups)) for group in groups),
            "Where the seconds went": _seconds_section(groups),
            "Class balance": _classes_section(groups),
            "Privacy": privacy_section(groups),
            "Configuration": differences_section(groups),
            "Runs": render_table(_run_rows(groups), texts=3),
        }
        write_page(out / "index.html", "Comparison", sections)
    return rows


def print_table(rows: Sequence[TextRow]) -> None:
    """Print the table in aligned columns."""
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for first, *cells in lines:
        numbers = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        print("  ".join([first.ljust(widths[0]), *numbers]))


def _table_rows(groups: Sequence[Group], target: float) -> list[TextRow]:
    runs = [run for group in groups for run in group.runs]
    has_policy = {run.experiment.participation.policy for run in runs} != {"all"}
    rows = []
    for group in groups:
        row = {
            "configuration": group.label,
            "seeds": str(len(group.runs)),
            "final": _format_mean([float(run.values[-1]) for run in group.runs]),
            "best": _format_mean([float(run.values.min()) for run in group.runs]),
        }
        for cost, column in _COST_COLUMNS.items():
            if all(cumulative_cost(run, cost) is not None for run in runs):
                row[column] = _format_cost(group, target, cost)
        rows.append({**row, **(_fairness_cells(group) if has_policy else {})})
    return rows


def _format_cost(group: Group, target: float, cost: Cost) -> str:
    """Return the mean cost of the seeds that reach the target, and their number if not all do."""
    costs = [cost_to_target(run, target, cost) for run in group.runs]
    reached = [cost for cost in costs if cost is not None]
    count = "" if len(reached) == len(costs) else f" [{len(reached)}/{len(costs)}]"
    return (_format_mean(reached) if reached else "never") + count


def _fairness_cells(group: Group) -> TextRow:
    each = [fairness for run in group.runs if (fairness := run.fairness) is not None]
    variations = [
        variation for fairness in each if (variation := fairness.total_variation) is not None
    ]
    return {
        "Jain index": _format_mean([fairness.jain for fairness in each]) if each else "–",
        "total variation of classes": _format_mean(variations) if variations else "–",
    }


def _format_mean(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.3g}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4g}{spread}"


def _table_notes(run: History, target: float) -> str:
    score = run.scores[0]
    return (
        f"Metric: {run.metric}, {score['samples']} images per score. "
        f"Floor (held-out real images): {score['floor']:.4g}. "
        f"Values are mean ± standard deviation over seeds. Target: {target:.4g}. "
        "Brackets give the number of seeds that reach the target if some do not; "
        "the mean then covers only these seeds."
    )


def _samples(group: Group, groups: int) -> str:
    """Return the grids of a group's first run."""
    run = group.runs[0]
    seed = run.config["run"].get("seed", 0)
    return samples_section(run, label=f"{group.label}, seed {seed}, ", pages=groups)


def _seconds_section(groups: Sequence[Group]) -> str:
    """Return the mean seconds of a round and of its phases, over all rounds and seeds."""
    rows: list[Row] = []
    longest = max(_mean_seconds(group, "seconds") for group in groups)
    for group in groups:
        measured = _mean_seconds(group, "seconds")
        row: dict[str, str | Cell] = {"configuration": group.label}
        row["round, s"] = Cell(
            text=f"{measured:.3g}", value=measured, share=measured / longest if longest else 0.0
        )
        for key, name in PHASES.items():
            mean = _mean_seconds(group, key)
            row[f"{name}, s"] = Cell(text=f"{mean:.3g}", value=mean)
        rows.append(row)
    note = "Means per round. Phases overlap, so their sum may exceed that of the round."
    return render_text(note) + render_table(rows)


def _classes_section(groups: Sequence[Group]) -> str:
    """Return the share of each class in the data, and in the training of each group's first run."""
    fairness = {group.label: group.runs[0].fairness for group in groups}
    seen = {label: each.classes_seen for label, each in fairness.items() if each is not None}
    seen = {label: shares for label, shares in seen.items() if shares}
    data = next((group.runs[0] for group in groups if group.label in seen), None)
    if data is None or data.device_data is None or data.fairness is None:
        return ""
    columns = {"share in data": data.fairness.classes_held}
    columns |= {f"in training: {label}": shares for label, shares in seen.items()}
    largest = max(max(shares) for shares in columns.values())
    rows: list[Row] = [
        {"class": name}
        | {
            head: Cell(text=f"{shares[n]:.1%}", value=shares[n], share=shares[n] / largest)
            for head, shares in columns.items()
        }
        for n, name in enumerate(data.device_data.class_names)
    ]
    return render_table(rows)


def _mean_seconds(group: Group, key: str) -> float:
    values = [line[key] for run in group.runs for line in run.rounds]
    return statistics.mean(values) if values else 0.0


def _run_rows(groups: Sequence[Group]) -> list[Row]:
    return [
        {
            "configuration": group.label,
            "seed": str(run.config["run"].get("seed", 0)),
            "directory": str(run.path),
        }
        for group in groups
        for run in group.runs
    ]


def _to_csv(rows: Sequence[TextRow]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()

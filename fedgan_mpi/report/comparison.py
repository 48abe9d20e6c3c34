"""The comparison of several runs: a table, plots and one HTML page."""

from __future__ import annotations

import csv
import html
import io
import statistics
from collections.abc import Sequence
from pathlib import Path

from fedgan_mpi.files import explain_write_errors, write_complete
from fedgan_mpi.report.costs import Cost, cost_to_target, cumulative_cost
from fedgan_mpi.report.curves import draw_scores
from fedgan_mpi.report.grouping import Group, check_comparable, group_runs
from fedgan_mpi.report.history import History, read_history
from fedgan_mpi.report.html_page import (
    Row,
    render_figure,
    render_image,
    render_table,
    write_page,
)
from fedgan_mpi.run.image_grids import round_of_grid

_COST_COLUMNS: dict[Cost, str] = {
    "rounds": "rounds to target",
    "seconds": "seconds to target",
    "megabytes": "MB to target",
    "wireless": "wireless s to target",
}


def write_comparison(paths: Sequence[Path], out: Path, target: float | None = None) -> list[Row]:
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
        draw_scores(out / "curves.png", groups)
        write_complete(out / "table.csv", _to_csv(rows).encode(errors="backslashreplace"))
        notes = f"<p>{html.escape(_table_notes(runs[0], target))}</p>"
        write_page(
            out / "index.html",
            "Comparison",
            {
                "Scores": f"{notes}<div class='wide'>{render_table(rows)}</div>",
                "Curves": render_image(out / "curves.png", "scores against cost"),
                "Samples": "".join(_last_grid(group) for group in groups),
                "Runs": f"<ul>{''.join(_list_runs(group) for group in groups)}</ul>",
            },
        )
    return rows


def print_table(rows: Sequence[Row]) -> None:
    """Print the table in aligned columns."""
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for first, *cells in lines:
        numbers = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        print("  ".join([first.ljust(widths[0]), *numbers]))


def _table_rows(groups: Sequence[Group], target: float) -> list[Row]:
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


def _fairness_cells(group: Group) -> Row:
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


def _last_grid(group: Group) -> str:
    run = group.runs[0]
    if not run.grids:
        return ""
    seed, grid = run.config["run"].get("seed", 0), run.grids[-1]
    caption = f"{group.label}, seed {seed}, after round {round_of_grid(grid)}"
    return render_figure(grid, caption)


def _list_runs(group: Group) -> str:
    paths = ", ".join(str(run.path) for run in group.runs)
    return f"<li>{html.escape(group.label)}: {html.escape(paths)}</li>"


def _to_csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()

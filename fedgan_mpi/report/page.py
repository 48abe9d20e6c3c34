"""Reports as one self-contained HTML page: of one run, or of several beside each other."""

from __future__ import annotations

import base64
import csv
import html
import io
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedgan_mpi.files import write_complete, writing
from fedgan_mpi.report.cell import draw_cell
from fedgan_mpi.report.curves import draw_losses, draw_scores
from fedgan_mpi.report.fairness import Fairness
from fedgan_mpi.report.history import (
    Group,
    History,
    check_comparable,
    group_runs,
    read_history,
)

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto;
       padding: 0 1rem; color: #222 }
table { border-collapse: collapse }
td, th { padding: .2rem .8rem; border-bottom: 1px solid #ddd; text-align: left }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums }
img { max-width: 100% }
figure { display: inline-block; margin: .5rem 1rem .5rem 0; vertical-align: top }
figure img { width: 20rem; image-rendering: pixelated }
pre { background: #f6f6f6; padding: 1rem; overflow-x: auto }
.wide { overflow-x: auto }
"""

Row = dict[str, str]


def write_report(run: Path) -> None:
    """Write curves.png, losses.png and report.html from what stands in a run directory."""
    history = read_history(run)
    groups = [Group(label="generated", runs=[history])]
    draw_losses(run / "losses.png", history)
    scores = "<p>None: there is no feature extractor, or nothing held out, beside the shards.</p>"
    curves = ""
    if history.scores:
        draw_scores(run / "curves.png", groups)
        scores, curves = _table(_last_scores(history)), _image(run / "curves.png", "scores")
    grids = history.grids
    shown = dict.fromkeys([grids[0], grids[-1]] if grids else [])
    moving = run / "training.gif"
    figures = [_figure(path, f"after round {_round_of(path)}") for path in shown]
    if moving.exists():
        figures.append(_figure(moving, "round by round"))
    config = (run / "config.toml").read_text(encoding="utf-8")
    _write_page(
        run / "report.html",
        history.name,
        {
            "Scores": scores + curves,
            "Samples": "".join(figures),
            "Losses": _image(run / "losses.png", "losses against rounds"),
            "Cost": _table(_costs(history)),
            **_participation(run, history),
            "Configuration": f"<pre>{html.escape(config)}</pre>",
        },
    )


def write_comparison(paths: Sequence[Path], out: Path, target: float | None = None) -> list[Row]:
    """Write table.csv, curves.png and index.html of runs beside each other; gives the table.

    target: the score whose cost is told; None: the best that every configuration reaches in the
    mean over its seeds. Raises UserError where runs cannot stand on one axis, before anything is
    written.
    """
    runs = [read_history(path) for path in paths]
    check_comparable(runs)
    groups = group_runs(runs)
    if target is None:
        target = max(statistics.mean(run.values.min() for run in group.runs) for group in groups)
    rows = _comparison(groups, target)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        draw_scores(out / "curves.png", groups)
        write_complete(out / "table.csv", _csv(rows).encode())
        figures = [
            _figure(group.runs[0].grids[-1], f"{group.label}, {_after(group.runs[0])}")
            for group in groups
            if group.runs[0].grids
        ]
        about = (
            f"<p>{html.escape(str(runs[0].metric))}, {runs[0].scores[0]['samples']} images a score"
            f"; held-out real images have {runs[0].scores[0]['floor']:.4g}. Mean ± standard "
            f"deviation over seeds. Target: {target:.4g}; in brackets the seeds that reach it, "
            "where not all do; the means are theirs.</p>"
        )
        named = "".join(
            f"<li>{html.escape(group.label)}: "
            f"{html.escape(', '.join(str(run.path) for run in group.runs))}</li>"
            for group in groups
        )
        _write_page(
            out / "index.html",
            "Comparison",
            {
                "Scores": about + f"<div class='wide'>{_table(rows)}</div>",
                "Curves": _image(out / "curves.png", "scores against cost"),
                "Samples": "".join(figures),
                "Runs": f"<ul>{named}</ul>",
            },
        )
    return rows


def print_table(rows: Sequence[Row]) -> None:
    """The table on standard output, in columns."""
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for first, *cells in lines:
        numbers = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        print("  ".join([first.ljust(widths[0]), *numbers]))


def _comparison(groups: Sequence[Group], target: float) -> list[Row]:
    rows = []
    policies = {run.experiment.participation.policy for group in groups for run in group.runs}
    chosen = policies != {"all"}
    for group in groups:
        row = {
            "configuration": group.label,
            "seeds": str(len(group.runs)),
            "final": _mean([float(run.values[-1]) for run in group.runs]),
            "best": _mean([float(run.values.min()) for run in group.runs]),
        }
        for of, head in (
            ("rounds", "rounds to target"),
            ("seconds", "seconds to target"),
            ("megabytes", "MB to target"),
            ("wireless", "wireless s to target"),
        ):
            if any(run.cost(of) is None for each in groups for run in each.runs):
                continue
            spent = [run.cost_to(target, of) for run in group.runs]
            reached = [cost for cost in spent if cost is not None]
            all_do = len(reached) == len(spent)
            row[head] = _mean(reached) + ("" if all_do else f" [{len(reached)}/{len(spent)}]")
        rows.append({**row, **(_fairness_of(group) if chosen else {})})
    return rows


def _fairness_of(group: Group) -> Row:
    """How evenly devices took part, and how far the classes seen are from those held."""
    told = [run.fairness for run in group.runs]
    known = [each for each in told if each is not None]
    if not known:
        return {"fairness (Jain)": "–", "classes seen, off by": "–"}
    off = [each.total_variation for each in known if each.total_variation is not None]
    return {
        "fairness (Jain)": _mean([each.jain for each in known]),
        "classes seen, off by": _mean(off) if off else "–",
    }


def _participation(run: Path, history: History) -> dict[str, str]:
    """The section of who took part; none where nobody is chosen. Writes cell.png."""
    told, cell = history.fairness, history.cell
    if told is None or history.devices is None:
        return {}
    rates = None if cell is None else cell.up_rates(history.participants)
    rows = []
    for k, (times, images) in enumerate(zip(told.times, history.devices.images, strict=True)):
        row = {"device": str(k + 1), "images": f"{images:,}", "rounds": str(times)}
        if cell is not None and rates is not None:
            row["distance, m"] = f"{cell.distances_m[k]:.0f}"
            row["mean rate up, Mbit/s"] = f"{rates[k] / 1e6:.2f}"
        rows.append(row)
    picture = ""
    if cell is not None:
        draw_cell(run / "cell.png", cell, told.times, history.participants)
        picture = _image(run / "cell.png", "the cell: devices, rates and participation")
    section = f"<p>{html.escape(told.sentence())}.</p>{_table(rows)}{_classes(history, told)}"
    return {"Participation": section + picture}


def _classes(history: History, told: Fairness) -> str:
    if history.devices is None or not told.classes_seen:
        return ""
    names = history.devices.class_names
    shares = zip(names, told.classes_held, told.classes_seen, strict=True)
    return "<p>" + _table(
        [
            {"class": name, "held": f"{held:.1%}", "seen": f"{seen:.1%}"}
            for name, held, seen in shares
        ]
    )


def _mean(values: Sequence[float]) -> str:
    if not values:
        return "never"
    spread = f" ± {statistics.stdev(values):.3g}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4g}{spread}"


def _last_scores(run: History) -> list[Row]:
    best = min(range(len(run.values)), key=lambda n: run.values[n])
    last = {line["metric"]: line for line in run.scores}
    rows = []
    for name, line in last.items():
        values = [each for each in run.scores if each["metric"] == name]
        rows.append(
            {
                "metric": name,
                "final": f"{line['value']:.4g}",
                f"at the best, round {values[best]['round']}": f"{values[best]['value']:.4g}",
                "held-out real images": f"{line['floor']:.4g}",
                "images": str(line["samples"]),
            }
        )
    return rows


def _costs(history: History) -> list[Row]:
    keys = ["seconds", "seconds_downlink", "seconds_local", "seconds_uplink", "seconds_server"]
    if all("wireless_seconds" in line for line in history.rounds):
        keys.append("wireless_seconds")
    rows = [
        {"what": key.replace("_", " "), "sum": f"{sum(line[key] for line in history.rounds):.4g}"}
        for key in keys
    ]
    for key in ("bytes_down", "bytes_up"):
        total = sum(line[key] for line in history.rounds)
        rows.append({"what": key.replace("_", " "), "sum": f"{total:,}"})
    return rows


def _table(rows: Sequence[Row]) -> str:
    """The first column is words, the others numbers."""
    kinds = ["", *[" class='number'"] * (len(rows[0]) - 1)]

    def line(cells: Sequence[str], tag: str) -> str:
        pairs = zip(cells, kinds, strict=True)
        return "".join(f"<{tag}{kind}>{html.escape(cell)}</{tag}>" for cell, kind in pairs)

    body = "".join(f"<tr>{line(list(row.values()), 'td')}</tr>" for row in rows)
    return f"<table><tr>{line(list(rows[0]), 'th')}</tr>{body}</table>"


def _csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _after(run: History) -> str:
    return f"seed {run.config['run'].get('seed', 0)}, after round {_round_of(run.grids[-1])}"


def _round_of(grid: Path) -> int:
    return int(grid.stem.removeprefix("round_"))


def _figure(path: Path, caption: str) -> str:
    text = html.escape(caption)
    return f"<figure>{_image(path, text)}<figcaption>{text}</figcaption></figure>"


def _image(path: Path, alt: str) -> str:
    kind = path.suffix.removeprefix(".")
    content = base64.b64encode(path.read_bytes()).decode()
    return f'<img src="data:image/{kind};base64,{content}" alt="{html.escape(alt)}">'


def _write_page(path: Path, title: str, sections: dict[str, Any]) -> None:
    body = "".join(f"<h2>{head}</h2>\n{content}\n" for head, content in sections.items())
    title = html.escape(title)
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style></head>
<body><h1>{title}</h1>
{body}</body></html>
"""
    write_complete(path, page.encode())

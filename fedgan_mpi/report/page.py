"""One run as a picture of its curves and one self-contained HTML page."""

from __future__ import annotations

import base64
import html
from pathlib import Path
from typing import Any

from fedgan_mpi.files import complete_or_absent, write_complete
from fedgan_mpi.run.record import read_stats

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto;
       padding: 0 1rem; color: #222 }
table { border-collapse: collapse }
td, th { padding: .2rem .8rem; border-bottom: 1px solid #ddd; text-align: left }
td.number { text-align: right; font-variant-numeric: tabular-nums }
img { max-width: 100% }
figure { display: inline-block; margin: .5rem 1rem .5rem 0; vertical-align: top }
figure img { width: 27rem }
pre { background: #f6f6f6; padding: 1rem; overflow-x: auto }
"""


def write_report(run: Path) -> None:
    """Write curves.png and report.html from what stands in a run directory."""
    rounds, scores = read_stats(run)
    draw_curves(run / "curves.png", rounds, scores)
    grids = sorted((run / "samples").glob("round_*.png"))
    chosen = [grids[0], grids[-1]] if len(grids) > 1 else grids
    figures = "".join(
        f"<figure><img src='{_embedded(path)}' alt=''>"
        f"<figcaption>after round {int(path.stem.removeprefix('round_'))}</figcaption></figure>"
        for path in chosen
    )
    name = html.escape(run.resolve().name)
    config = html.escape((run / "config.toml").read_text(encoding="utf-8"))
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{name}</title><style>{_STYLE}</style></head>
<body><h1>{name}</h1>
<h2>Scores</h2>{_score_table(scores)}
<h2>Curves</h2><img src="{_embedded(run / "curves.png")}" alt="losses and scores against rounds">
<h2>Samples</h2>{figures}
<h2>Cost</h2>{_cost_table(rounds)}
<h2>Configuration</h2><pre>{config}</pre>
</body></html>
"""
    write_complete(run / "report.html", page.encode())


def draw_curves(path: Path, rounds: list[dict[str, Any]], scores: list[dict[str, Any]]) -> None:
    """Losses, and the Fréchet distance with its floor, against rounds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (losses, distance) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    t = [line["round"] for line in rounds]
    for key, label in (("d_loss", "discriminator"), ("g_loss", "generator")):
        losses.plot(t, [line[key] for line in rounds], label=label, linewidth=1)
    losses.set(title="Loss", xlabel="round", ylabel="mean loss of a round")
    losses.legend()

    frechet = [line for line in scores if line["metric"].startswith("frechet")]
    if frechet:
        name = frechet[0]["metric"]
        distance.plot(
            [s["round"] for s in frechet], [s["value"] for s in frechet], "o-", label="generated"
        )
        distance.axhline(
            frechet[0]["floor"], color="gray", linestyle="--", label="held-out real images"
        )
        distance.set(title=f"{name}\n{frechet[0]['samples']} images", xlabel="round", yscale="log")
        distance.legend()
    else:
        distance.set_axis_off()
        distance.text(0.5, 0.5, "no feature extractor beside the shards, so no scores", ha="center")
    with complete_or_absent(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    pyplot.close(figure)


def _score_table(scores: list[dict[str, Any]]) -> str:
    last = {line["metric"]: line for line in scores}
    if not last:
        return "<p>None: there is no feature extractor beside the shards.</p>"
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td>{_numbers(line['value'], line['floor'])}"
        f"<td class='number'>{line['samples']}</td><td class='number'>{line['round']}</td></tr>"
        for name, line in last.items()
    )
    head = (
        "<tr><th>metric</th><th>value</th><th>held-out real</th><th>images</th><th>round</th></tr>"
    )
    return f"<table>{head}{rows}</table>"


def _cost_table(rounds: list[dict[str, Any]]) -> str:
    sums = ("seconds", "seconds_downlink", "seconds_local", "seconds_uplink", "seconds_server")
    rows = "".join(
        f"<tr><td>{key}</td>{_numbers(sum(line[key] for line in rounds))}</tr>" for key in sums
    )
    for key in ("bytes_down", "bytes_up"):
        rows += (
            f"<tr><td>{key}</td><td class='number'>{sum(line[key] for line in rounds):,}</td></tr>"
        )
    return f"<table>{rows}</table>"


def _numbers(*values: float) -> str:
    return "".join(f"<td class='number'>{value:.4g}</td>" for value in values)


def _embedded(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()

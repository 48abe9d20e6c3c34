"""Tables of the paper's claim, in Markdown: the cost of FedGAN's best score for each algorithm.

The target of a seed is FedGAN's best score with that seed. A ratio below 1 means that an algorithm
reaches the target at a lower cost than FedGAN. The sensitivity tables time the stored rounds in
other cells, because training does not depend on the cell.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pictures import draw_samples

from fedgan_mpi.config import WirelessConfig
from fedgan_mpi.evaluation.evaluate import EVALUATION
from fedgan_mpi.report.comparison import write_comparison
from fedgan_mpi.report.costs import Cost, cost_to_target, cumulative_cost, retime
from fedgan_mpi.report.history import History, read_history
from fedgan_mpi.run.generator_file import BEST, FINAL

BASELINE = "fedgan"
SCHEDULES = ("ren-serial", "ren-parallel")
LIMITS: dict[Cost, float] = {"wireless": 0.67, "megabytes": 0.75}
"""The claim: greatest ratio of each cost to FedGAN's."""
NAMES: dict[Cost, str] = {
    "rounds": "rounds",
    "wireless": "wireless seconds",
    "megabytes": "bytes",
    "seconds": "measured seconds",
}
SERVER_RATES = (1e8, 1e9, 3e9, 1e10, 3e10, 1e11, 1e12, 1e13)  # multiply-accumulates per second
DEVICE_RATES = (1e8, 1e9, 1e10, 1e11, 1e12)  # multiply-accumulates per second
BANDWIDTHS = (1e6, 3e6, 10e6, 30e6, 100e6)  # Hz
CELLS = 10  # other seeds of the cell

Runs = Mapping[str, Sequence[History]]
"""Variant -> its runs, in the order of seeds."""
Row = dict[str, str]


def write_reports(out: Path, data_sets: Mapping[str, Sequence[str]]) -> None:
    """Write claim.md, sensitivity.md and a comparison per data set to out/report/.

    data_sets: name -> variants. Also write extras.md if there are other runs.
    """
    report = out / "report"
    report.mkdir(exist_ok=True)
    finished = read_runs(out)
    claims, cells = [], []
    for data, variants in data_sets.items():
        runs = {name: select(finished, f"{data}-{name}") for name in variants}
        runs = {name: seeds for name, seeds in runs.items() if seeds}
        if BASELINE not in runs:
            continue
        write_comparison([run.path for seeds in runs.values() for run in seeds], report / data)
        first = {name: seeds[0].path for name, seeds in runs.items()}
        if all((run / f"{BEST}.safetensors").exists() for run in first.values()):
            draw_samples(first, report / data / "samples.png")
        claims += [f"## {data}", score_table(runs), claim_table(runs)]
        if all((run.path / EVALUATION).exists() for seeds in runs.values() for run in seeds):
            claims += [imagenet_table(runs)]
        cells += [f"## {data}", *sensitivity_tables(runs)]
    (report / "claim.md").write_text("\n\n".join(claims) + "\n", encoding="utf-8")
    (report / "sensitivity.md").write_text("\n\n".join(cells) + "\n", encoding="utf-8")
    names = {f"{data}-{variant}" for data, variants in data_sets.items() for variant in variants}
    extras = [run for run in finished if variant_of(run) not in names]
    if extras:
        baselines = [run for run in finished if run.name.endswith(f"-{BASELINE}-seed0")]
        table = extras_table(extras, [*baselines, *extras])
        (report / "extras.md").write_text(table + "\n", encoding="utf-8")
    print(f"{report}/: claim.md, sensitivity.md, and index.html for each data set")


def read_runs(out: Path) -> list[History]:
    """Read all finished runs, sorted by name."""
    return [
        read_history(run)
        for run in sorted((out / "runs").glob("*"))
        if (run / "report.html").exists()
    ]


def select(runs: Sequence[History], variant: str) -> list[History]:
    """Return the seeds of one variant of a data set."""
    return [run for run in runs if variant_of(run) == variant]


def variant_of(run: History) -> str:
    """Return the name of a run without its seed."""
    return run.name.rpartition("-seed")[0]


# ------------------------------------------------------------ the claim


def score_table(runs: Runs) -> str:
    """Return each variant's best and last scores, and the cost of all its rounds."""
    rows = []
    for name, seeds in runs.items():
        rows.append(
            {
                "": name,
                "seeds": str(len(seeds)),
                "best": format_scores([float(run.values.min()) for run in seeds]),
                "last": format_scores([float(run.values[-1]) for run in seeds]),
                "held-out images": f"{seeds[0].scores[0]['floor']:.3g}",
                "wireless seconds, all rounds": format_total(seeds[0], "wireless"),
                "MB, all rounds": format_total(seeds[0], "megabytes"),
                "rounds": str(len(seeds[0].rounds)),
            }
        )
    return markdown_table(rows)


def claim_table(runs: Runs) -> str:
    """Return each variant's cost ratios to FedGAN, and whether they are within the claim."""
    rows = []
    for name, seeds in runs.items():
        row = {"to FedGAN's best score": name}
        for cost, cost_name in NAMES.items():
            row[f"{cost_name}, ratio"] = format_ratios(cost_ratios(seeds, runs[BASELINE], cost))
        for cost, limit in LIMITS.items():
            ratios = cost_ratios(seeds, runs[BASELINE], cost)
            verdict = "–" if name == BASELINE else format_verdict(ratios, limit)
            row[f"{NAMES[cost]} ≤ {limit}"] = verdict
        rows.append(row)
    return markdown_table(rows)


def cost_ratio(run: History, baseline: History, cost: Cost) -> float | None:
    """Return the cost of the baseline's best score, over the baseline's own cost.

    None if the run does not reach that score.
    """
    target = float(baseline.values.min())
    spent, reference = cost_to_target(run, target, cost), cost_to_target(baseline, target, cost)
    return None if spent is None or not reference else spent / reference


def cost_ratios(
    runs: Sequence[History], baselines: Sequence[History], cost: Cost
) -> list[float | None]:
    """Return the ratio of each run to the baseline with the same seed, if there is one."""
    by_seed = {run.experiment.run.seed: run for run in baselines}
    return [
        cost_ratio(run, by_seed[run.experiment.run.seed], cost)
        for run in runs
        if run.experiment.run.seed in by_seed
    ]


def imagenet_table(runs: Runs) -> str:
    """Return the distances of each variant's best and last generator in ImageNet features.

    The best generator is the one with the lowest score in training.
    """
    rows = []
    for name, seeds in runs.items():
        scores = [_imagenet_scores(run.path) for run in seeds]
        rows.append(
            {
                "in ImageNet features": name,
                "best": format_scores([each[f"{BEST}.safetensors"]["value"] for each in scores]),
                "last": format_scores([each[f"{FINAL}.safetensors"]["value"] for each in scores]),
                "held-out images": format_scores([next(iter(e.values()))["floor"] for e in scores]),
            }
        )
    return markdown_table(rows)


def _imagenet_scores(run: Path) -> dict[str, dict[str, Any]]:
    """Return generator -> line of evaluation.jsonl."""
    lines = (run / EVALUATION).read_text(encoding="utf-8").splitlines()
    return {line["of"]["generator"]: line for line in map(json.loads, lines)}


# ------------------------------------------------------------ other cells


def sensitivity_tables(runs: Runs) -> list[str]:
    """Return the wireless ratios of the same rounds in other cells, with headings."""
    usual = runs[BASELINE][0].experiment.wireless
    servers = [replace(usual, server_macs_per_second=rate) for rate in SERVER_RATES]
    bands = {f"{hz / 1e6:g}": replace(usual, bandwidth_hz=hz) for hz in BANDWIDTHS}
    devices = {
        f"{rate:.0e}": replace(usual, device_macs_per_second=(rate,)) for rate in DEVICE_RATES
    }
    return [
        "### Speed of the server",
        markdown_table([schedule_row(runs, cell) for cell in servers]),
        "### Bandwidth",
        markdown_table([{"MHz": mhz, **ratio_row(runs, cell)} for mhz, cell in bands.items()]),
        "### Speed of the devices",
        markdown_table(
            [{"device MAC/s": rate, **ratio_row(runs, cell)} for rate, cell in devices.items()]
        ),
        f"### {CELLS} other placements of the devices",
        markdown_table(placement_rows(runs, usual)),
    ]


def ratio_row(runs: Runs, cell: WirelessConfig) -> Row:
    """Return each variant's ratio of wireless seconds in this cell."""
    timed = {name: [retime(run, cell) for run in seeds] for name, seeds in runs.items()}
    return {
        name: format_ratios(cost_ratios(seeds, timed[BASELINE], "wireless"))
        for name, seeds in timed.items()
        if name not in (BASELINE, "centralized")
    }


def schedule_row(runs: Runs, cell: WirelessConfig) -> Row:
    """Return the duration of a round with either schedule in this cell, and the ratios."""
    serial, parallel = (
        retime(runs[name][0], cell).rounds[0]["wireless_seconds"] for name in SCHEDULES
    )
    ratios = ratio_row(runs, cell)
    return {
        "server MAC/s": f"{cell.server_macs_per_second:.0e}",
        "serial round, s": f"{serial:.4g}",
        "parallel round, s": f"{parallel:.4g}",
        "parallel / serial": f"{parallel / serial:.3f}",
        "serial to target / FedGAN": ratios["ren-serial"],
        "parallel to target / FedGAN": ratios["ren-parallel"],
    }


def placement_rows(runs: Runs, usual: WirelessConfig) -> list[Row]:
    """Return the range of each schedule's ratio over other seeds of the cell."""
    rows = []
    for name in SCHEDULES:
        means = []
        for seed in range(1, CELLS + 1):
            cell = replace(usual, seed=seed)
            timed, baselines = ([retime(run, cell) for run in runs[n]] for n in (name, BASELINE))
            ratios = cost_ratios(timed, baselines, "wireless")
            reached = [ratio for ratio in ratios if ratio is not None]
            means += [statistics.mean(reached)] if reached else []
        spread = f"{min(means):.2f} to {max(means):.2f}" if means else "never"
        rows.append({"": name, "ratio, lowest to highest": spread})
    return rows


# ------------------------------------------------------------ runs of one seed


def extras_table(runs: Sequence[History], baselines: Sequence[History]) -> str:
    """Return one row per run, with its ratios to the first FedGAN run on the same shards."""
    baseline_of: dict[str, History] = {}
    for run in baselines:
        if run.experiment.algorithm.name == BASELINE:
            baseline_of.setdefault(run.shards_sha256, run)
    rows = []
    for run in runs:
        row = {
            "": run.name.removesuffix("-seed0"),
            "best": f"{run.values.min():.1f}",
            "last": f"{run.values[-1]:.1f}",
            "wireless s, all rounds": format_total(run, "wireless", missing="–"),
            "MB, all rounds": format_total(run, "megabytes", missing="–"),
        }
        baseline = baseline_of.get(run.shards_sha256)
        for cost in LIMITS:
            ratio = None if baseline is None else cost_ratio(run, baseline, cost)
            row[f"{NAMES[cost]}, ratio"] = "never" if ratio is None else f"{ratio:.2f}"
        fairness = run.fairness
        row["rounds of a device"] = "–"
        row["Jain"] = "–"
        if fairness is not None:
            fewest, most = min(fairness.participations), max(fairness.participations)
            row["rounds of a device"] = f"{fewest} to {most}"
            row["Jain"] = f"{fairness.jain:.2f}"
        rows.append(row)
    return markdown_table(rows)


# ------------------------------------------------------------ formats


def format_ratios(ratios: Sequence[float | None]) -> str:
    """Return mean ± standard deviation of the seeds that reach the target, and their number."""
    reached = [ratio for ratio in ratios if ratio is not None]
    if not reached:
        return f"never (0 of {len(ratios)})"
    spread = f" ± {statistics.stdev(reached):.2f}" if len(reached) > 1 else ""
    count = "" if len(reached) == len(ratios) else f" ({len(reached)} of {len(ratios)})"
    return f"{statistics.mean(reached):.2f}{spread}{count}"


def format_verdict(ratios: Sequence[float | None], limit: float) -> str:
    within = sum(ratio is not None and ratio <= limit for ratio in ratios)
    return "yes" if within == len(ratios) else f"no: {within} of {len(ratios)} seeds"


def format_scores(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def format_total(run: History, cost: Cost, missing: str = "0.0") -> str:
    """Return the cost up to the last score."""
    total = cumulative_cost(run, cost)
    return missing if total is None else f"{total[-1]:.1f}"


def markdown_table(rows: Sequence[Row]) -> str:
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)

"""Tables of the paper's claim: what FedGAN's best score costs others, on which cells, in Markdown.

The target of a seed is the best score that FedGAN has in that seed; a ratio below 1 says that the
method is there with less. Where only the cell differs, stored rounds are timed anew: training does
not depend on it.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from fedgan_mpi.config import WirelessConfig
from fedgan_mpi.report.history import History, read_history
from fedgan_mpi.report.page import write_comparison

BASELINE = "fedgan"
CLAIMED = {"wireless": 0.67, "megabytes": 0.75}
HEADS = {
    "rounds": "rounds",
    "wireless": "wireless seconds",
    "megabytes": "bytes",
    "seconds": "measured seconds",
}
SERVERS = (1e8, 1e9, 3e9, 1e10, 3e10, 1e11, 1e12, 1e13)  # multiply-accumulates a second
BANDS = (1e6, 3e6, 10e6, 30e6, 100e6)  # Hz
DEVICES = (1e8, 1e9, 1e10, 1e11, 1e12)  # multiply-accumulates a second
CELLS = 10  # seeds of the cell

Runs = Mapping[str, Sequence[History]]
"""Variant -> its runs, in the order of seeds."""
Row = dict[str, str]


def write_reports(out: Path, data_sets: Sequence[str], variants: Sequence[str]) -> None:
    """Write out/report/: a comparison a data set, claim.md, sensitivity.md, and extras.md where
    the one-seed runs are there."""
    report = out / "report"
    report.mkdir(exist_ok=True)
    claims, cells = [], []
    for data in data_sets:
        runs = {name: read_runs(out, f"{data}-{name}") for name in variants}
        there = {name: seeds for name, seeds in runs.items() if seeds}
        if BASELINE not in there:
            continue
        write_comparison([run.path for seeds in there.values() for run in seeds], report / data)
        claims += [f"## {data}", scores(there), claim(there)]
        cells += [f"## {data}", *sensitivity(there)]
    (report / "claim.md").write_text("\n\n".join(claims) + "\n", encoding="utf-8")
    (report / "sensitivity.md").write_text("\n\n".join(cells) + "\n", encoding="utf-8")
    every = read_runs(out, "")
    extras = [run for run in every if run.name not in _named(data_sets, variants)]
    if extras:
        first = [run for run in every if run.name.endswith(f"-{BASELINE}-seed0")]
        text = each_run(extras, [*first, *extras])
        (report / "extras.md").write_text(text + "\n", encoding="utf-8")
    print(f"{report}/: claim.md, sensitivity.md, and index.html for each data set")


def read_runs(out: Path, name: str) -> list[History]:
    """The finished runs whose names begin so and go on with the seed."""
    pattern = f"{name}-seed*" if name else "*"
    found = sorted((out / "runs").glob(pattern))
    return [read_history(run) for run in found if (run / "report.html").exists()]


def _named(data_sets: Sequence[str], variants: Sequence[str]) -> set[str]:
    return {f"{data}-{name}-seed{n}" for data in data_sets for name in variants for n in range(99)}


# ------------------------------------------------------------ the claim


def ratio(run: History, baseline: History, of: str) -> float | None:
    """Cost to the baseline's best score, over the baseline's; None where it is not reached."""
    target = float(baseline.values.min())
    mine, theirs = run.cost_to(target, of), baseline.cost_to(target, of)
    return None if mine is None or not theirs else mine / theirs


def ratios(seeds: Sequence[History], baselines: Sequence[History], of: str) -> str:
    """Mean ± standard deviation over those seeds that get there, and how many do."""
    each = [ratio(run, other, of) for run, other in pairs(seeds, baselines)]
    return mean([one for one in each if one is not None], len(each))


def pairs(seeds: Sequence[History], baselines: Sequence[History]) -> list[tuple[History, History]]:
    """Runs of the same seed."""
    by_seed = {run.experiment.run.seed: run for run in baselines}
    return [(run, by_seed[s]) for run in seeds if (s := run.experiment.run.seed) in by_seed]


def mean(values: Sequence[float], asked: int) -> str:
    if not values:
        return f"never (0 of {asked})"
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    missing = "" if len(values) == asked else f" ({len(values)} of {asked})"
    return f"{statistics.mean(values):.2f}{spread}{missing}"


def claim(runs: Runs) -> str:
    """Each variant's cost to FedGAN's best score, over FedGAN's."""
    rows = []
    for name, seeds in runs.items():
        row = {"to FedGAN's best score": name}
        for of, head in HEADS.items():
            row[f"{head}, ratio"] = ratios(seeds, runs[BASELINE], of)
        for of, most in CLAIMED.items():
            told = "–" if name == BASELINE else verdict(seeds, runs[BASELINE], of, most)
            row[f"{HEADS[of]} ≤ {most}"] = told
        rows.append(row)
    return table(rows)


def verdict(seeds: Sequence[History], baselines: Sequence[History], of: str, most: float) -> str:
    each = [ratio(run, other, of) for run, other in pairs(seeds, baselines)]
    within = sum(one is not None and one <= most for one in each)
    return "yes" if within == len(each) else f"no: {within} of {len(each)} seeds"


def scores(runs: Runs) -> str:
    """Last and best scores, and what a round costs."""
    rows = []
    for name, seeds in runs.items():
        first = seeds[0]
        best = [float(run.values.min()) for run in seeds]
        last = [float(run.values[-1]) for run in seeds]
        row = {"": name, "seeds": str(len(seeds)), "best": plain(best), "last": plain(last)}
        for of in ("wireless", "megabytes"):
            spent = first.cost(of)
            total = 0.0 if spent is None else spent[-1]
            row[f"{HEADS[of] if of == 'wireless' else 'MB'}, all rounds"] = f"{total:.1f}"
        rows.append({**row, "rounds": str(len(first.rounds))})
    return table(rows)


def plain(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


# ------------------------------------------------------------ other cells


def sensitivity(runs: Runs) -> list[str]:
    """The claim in time on other cells, from the same rounds."""
    usual = runs[BASELINE][0].experiment.wireless
    servers = [replace(usual, server_macs_per_second=speed) for speed in SERVERS]
    bands = [replace(usual, bandwidth_hz=band) for band in BANDS]
    devices = [replace(usual, device_macs_per_second=(speed,)) for speed in DEVICES]
    return [
        "### Speed of the server",
        table([schedules(runs, cell) for cell in servers]),
        "### Bandwidth",
        table([{"MHz": f"{c.bandwidth_hz / 1e6:g}", **on_cell(runs, c)} for c in bands]),
        "### Speed of the devices",
        table(
            [
                {"device MAC/s": f"{c.device_macs_per_second[0]:.0e}", **on_cell(runs, c)}
                for c in devices
            ]
        ),
        f"### {CELLS} other places of the devices",
        table(other_cells(runs, usual)),
    ]


def on_cell(runs: Runs, cell: WirelessConfig) -> Row:
    """Wireless seconds to FedGAN's best score, over FedGAN's, on a cell."""
    timed = {name: [run.with_clock(cell) for run in seeds] for name, seeds in runs.items()}
    return {
        name: ratios(seeds, timed[BASELINE], "wireless")
        for name, seeds in timed.items()
        if name not in (BASELINE, "centralized")
    }


def schedules(runs: Runs, cell: WirelessConfig) -> Row:
    """A round by either schedule, and what FedGAN's best score takes."""
    both = {name: runs[name][0].with_clock(cell) for name in ("ren-serial", "ren-parallel")}
    serial, parallel = (run.rounds[0]["wireless_seconds"] for run in both.values())
    there = on_cell(runs, cell)
    return {
        "server MAC/s": f"{cell.server_macs_per_second:.0e}",
        "serial round, s": f"{serial:.4g}",
        "parallel round, s": f"{parallel:.4g}",
        "parallel / serial": f"{parallel / serial:.3f}",
        "serial to target / FedGAN": there["ren-serial"],
        "parallel to target / FedGAN": there["ren-parallel"],
    }


def other_cells(runs: Runs, usual: WirelessConfig) -> list[Row]:
    """Mean and range over cells of the mean ratio over seeds."""
    rows = []
    for name in ("ren-serial", "ren-parallel"):
        means = []
        for seed in range(1, CELLS + 1):
            cell = replace(usual, seed=seed)
            others = [run.with_clock(cell) for run in runs[BASELINE]]
            each = [
                ratio(run.with_clock(cell), other, "wireless")
                for run, other in pairs(runs[name], others)
            ]
            reached = [one for one in each if one is not None]
            means += [statistics.mean(reached)] if reached else []
        spread = f"{min(means):.2f} to {max(means):.2f}" if means else "never"
        rows.append({"": name, "ratio, from least to greatest": spread})
    return rows


# ------------------------------------------------------------ runs of one seed


def each_run(runs: Sequence[History], baselines: Sequence[History]) -> str:
    """A line a run; its baseline is the first FedGAN among `baselines` with the same shards."""
    rows = []
    of_shards: dict[str, History] = {}
    for run in baselines:
        if run.experiment.algorithm.name == BASELINE:
            of_shards.setdefault(run.shards_sha256, run)
    for run in runs:
        told = run.fairness
        row = {"": run.name.removesuffix("-seed0"), "best": f"{run.values.min():.1f}"}
        row["last"] = f"{run.values[-1]:.1f}"
        for of, head in (("wireless", "wireless s"), ("megabytes", "MB")):
            spent = run.cost(of)
            row[f"{head}, all rounds"] = "–" if spent is None else f"{spent[-1]:.1f}"
        baseline = of_shards.get(run.shards_sha256)
        for of in ("wireless", "megabytes"):
            told_ratio = None if baseline is None else ratio(run, baseline, of)
            row[f"{HEADS[of]}, ratio"] = "never" if told_ratio is None else f"{told_ratio:.2f}"
        row["rounds of a device"] = f"{min(told.times)} to {max(told.times)}" if told else "–"
        row["Jain"] = f"{told.jain:.2f}" if told else "–"
        rows.append(row)
    return table(rows)


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)

"""Prints the tables of docs/results/peers.md and draws its figure.

python benchmarks/peers/tables.py peers [--figure docs/images/peers.png]
"""

from __future__ import annotations

import argparse
import ast
import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from fedgan_mpi.run.figures import new_figure, write_figure

NAMES = {
    "ours": "fedgan_mpi",
    "link": "its link alone",
    "floor": "torch.distributed, by hand",
    "flower": "Flower",
    "fedml": "FedML",
}
LEARNERS = (*(who for who in NAMES if who != "link"), "ren serial", "ren parallel")
Row = dict[str, Any]
Get = Callable[[Row], float | None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="directory that compare.py has written")
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    lines = (args.out / "results.jsonl").read_text().splitlines()
    results = [{**line["case"], **line["result"]} for line in map(json.loads, lines)]
    rounds = [row for row in results if row["kind"] == "rounds"]
    for stage, title in (("silent", "Rounds without steps"), ("steps", "Rounds with steps")):
        print(f"\n## {title}\n{round_table(rounds, stage)}")
    print(f"\n## Scores\n{score_table([row for row in results if row['kind'] == 'scores'])}")
    memory = [row for row in results if row["kind"] == "memory"]
    print(f"\n## Start, memory, code\n{other_table(rounds, memory)}")
    if args.figure:
        draw(rounds, args.figure)


# -------------------------------------------------------------------- rounds


def round_table(rounds: Sequence[Row], stage: str) -> str:
    """Return the times of a stage's rounds, and their ratios to fedgan_mpi in the same block."""
    head = ["pixels, devices", "", "ms", "/ fedgan_mpi", "processor ms", "/ fedgan_mpi", "MB"]
    if stage == "steps":
        head.append("not steps")
    lines = []
    for pair, devices in cases_of(rounds):
        blocks = by_block(rounds, pair, devices)
        for who, name in NAMES.items():
            if not any(blocks[who].get(block, {}).get(stage) for block in blocks[who]):
                continue
            cells = [f"{pair.removesuffix('px')}, {devices}", name]
            for key in ("seconds", "cpu_seconds"):
                get = getter(stage, key)
                cells += [
                    spread([1e3 * value for value in values(blocks[who], get)]),
                    "" if who == "ours" else spread(ratios(blocks[who], blocks["ours"], get)),
                ]
            first = next(iter(blocks[who].values()))
            cells.append(f"{(first['bytes_down'] + first['bytes_up']) / 1e6:.1f}")
            if stage == "steps":
                cells.append(percent(blocks[who], ideals(rounds, pair, devices), stage))
            lines.append(cells)
    return table(head, lines)


def cases_of(rounds: Iterable[Row]) -> list[tuple[str, int]]:
    found = {(row["pair"], row["devices"]) for row in rounds if row["who"] == "ours"}
    return sorted(found, key=lambda case: (case[1], case[0]))


def by_block(rounds: Iterable[Row], pair: str, devices: int) -> dict[str, dict[int, Row]]:
    """Return who -> block -> result."""
    blocks: dict[str, dict[int, Row]] = defaultdict(dict)
    for row in rounds:
        if row["pair"] == pair and row["devices"] == devices:
            blocks[row["who"]][row["block"]] = row
    return blocks


def ideals(rounds: Iterable[Row], pair: str, devices: int) -> dict[int, float]:
    """Return block -> seconds of the steps of a round, as all cores take them without waiting."""
    return {
        row["block"]: row["steps"]["seconds"] * devices / row["devices"]
        for row in rounds
        if row["who"] == "steps" and row["pair"] == pair
    }


def percent(blocks: dict[int, Row], ideal: dict[int, float], stage: str) -> str:
    """Return the share of a round that is not its steps, in per cent."""
    shares = [
        100 * (1 - ideal[block] / row[stage]["seconds"])
        for block, row in blocks.items()
        if block in ideal
    ]
    return f"{statistics.median(shares):.0f} %" if shares else ""


def getter(stage: str, key: str) -> Get:
    return lambda row: row[stage][key] if row.get(stage) else None


def values(blocks: dict[int, Row], get: Get) -> list[float]:
    return [value for row in blocks.values() if (value := get(row)) is not None]


def ratios(blocks: dict[int, Row], references: dict[int, Row], get: Get) -> list[float]:
    """Return value / reference for each block that has both."""
    pairs = [(get(row), get(references[b])) for b, row in blocks.items() if b in references]
    return [value / reference for value, reference in pairs if value and reference]


# -------------------------------------------------------------------- scores


def score_table(scores: Sequence[Row]) -> str:
    """Return the seconds to 1.5 times the best score of FedGAN in fedgan_mpi, seed by seed."""
    head = ["data", "", "seconds", "processor seconds", "rounds", "best score"]
    lines = []
    for data in sorted({row["data"] for row in scores}):
        runs: dict[tuple[str, int], Row] = {
            (row["who"], row["seed"]): row for row in scores if row["data"] == data
        }
        seeds = sorted({seed for who, seed in runs if who == "ours"})
        targets = {seed: 1.5 * best(runs["ours", seed]) for seed in seeds}
        for who in LEARNERS:
            own = [seed for seed in seeds if (who, seed) in runs]
            reached = [hit for s in own if (hit := reach(runs[who, s], targets[s])) is not None]
            if not own:
                continue
            name = NAMES.get(who, f"fedgan_mpi, `{who}`")
            cells = [data, name]
            if len(reached) < len(own):
                cells += [f"reached by {len(reached)} of {len(own)}", "", ""]
            else:
                cells += [spread([hit[n] for hit in reached]) for n in (1, 2, 0)]
            cells.append(spread([best(runs[who, seed]) for seed in own]))
            lines.append(cells)
    return table(head, lines)


def best(run: Row) -> float:
    return min(point[3] for point in run["curve"])


def reach(run: Row, target: float) -> list[float] | None:
    """Return the first point of a curve whose score is at most the target."""
    return next((point for point in run["curve"] if point[3] <= target), None)


# -------------------------------------------------------------------- start, memory, code


def other_table(rounds: Sequence[Row], memory: Sequence[Row]) -> str:
    head = ["", "start to first round, s", "peak memory, MiB: 16 px; 64 px", "lines of code"]
    lines = []
    for who, name in NAMES.items():
        starts = [
            row["first_round_seconds"]
            for row in rounds
            if row["who"] == who and row["devices"] == 4 and row["pair"] == "16px"
        ]
        peaks = {row["pair"]: row["peak_mib"] for row in memory if row["who"] == who}
        if starts and peaks:
            memories = "; ".join(f"{peaks[pair]:,.0f}" for pair in sorted(peaks))
            lines.append([name, spread(starts), memories, code_lines(who)])
    return table(head, lines)


def code_lines(who: str) -> str:
    """Count lines without docstrings, comments, blank lines and what observes the job."""
    if who == "ours":
        return "a TOML file"
    here = Path(__file__).parent
    own, shared = (count_lines(here / name) for name in (f"{who}_job.py", "plain_gan.py"))
    return f"{own} + {shared} for networks and steps"


def count_lines(path: Path) -> int:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(
            node
        ):
            node.body = node.body[1:] or [ast.Pass()]
    lines = ast.unparse(tree).splitlines()
    return sum(bool(line.strip()) and "observe" not in line for line in lines)


# -------------------------------------------------------------------- output


def spread(numbers: Sequence[float]) -> str:
    """Return the median, with the minimum and the maximum in brackets."""
    middle, *ends = (shorten(f(numbers)) for f in (statistics.median, min, max))
    return middle if len(numbers) == 1 else f"{middle} ({ends[0]} – {ends[1]})"


def shorten(number: float) -> str:
    """Return three digits, or whole numbers."""
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def draw(rounds: Sequence[Row], path: Path) -> None:
    """Draw the milliseconds of rounds with four devices."""
    stages = {"silent": "without steps", "steps": "with one step"}
    panels = [
        (pair, devices, stage)
        for pair, devices in cases_of(rounds)
        for stage in stages
        if devices == 4
    ]
    names = [who for who in NAMES if who != "link"][::-1]
    figure = new_figure(2.7 * len(panels), 2.2)
    axes = figure.subplots(1, len(panels), sharey=True)
    for axis, (pair, devices, stage) in zip(axes, panels, strict=True):
        blocks, get = by_block(rounds, pair, devices), getter(stage, "seconds")
        times = [1e3 * statistics.median(values(blocks[who], get)) for who in names]
        colours = ["#00796b" if who == "ours" else "#90a4ae" for who in names]
        bars = axis.barh([NAMES[who] for who in names], times, color=colours)
        axis.bar_label(bars, [f" {shorten(each)}" for each in times], fontsize=8)
        axis.set(xlim=(0, 1.25 * max(times)), xlabel="ms per round")
        axis.set_title(f"{pair.removesuffix('px')} pixels, {stages[stage]}", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    write_figure(figure, path)


if __name__ == "__main__":
    main()

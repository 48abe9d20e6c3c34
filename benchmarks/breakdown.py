"""Aggregation rules under attack: 0 to 3 of 8 devices send their update times -4.

    python -m data_prep digits --devices 8 --out shards/digits/iid
    python -m data_prep digits --devices 8 --partition classes --classes 2 --out shards/digits/c2
    python benchmarks/breakdown.py --shards shards/digits --out runs/breakdown --ranks 1

Trains the runs that do not exist yet. Prints a table for each split, and draws `breakdown.png`
below `--out`. The rules with an option f assume two attackers.
"""

from __future__ import annotations

import statistics
from pathlib import Path

import study

from fedgan_mpi.run.figures import new_figure, write_figure

SPLITS = {"iid": "equal random parts", "c2": "two classes a device"}
RULES = {
    "mean": [],
    "median": [],
    "trimmed_mean": ["--aggregation.options.trim=2"],
    "multi_krum": ["--aggregation.options.faulty=2"],
    "geometric_median": [],
}
ATTACKERS = (0, 1, 2, 3)
COMMON = [
    *study.THREE_STEPS,
    "--training.rounds=200",
    "--training.batch_size=16",
    "--training.generator_batch_size=32",
    "--training.generator_lr=1e-3",
    "--training.discriminator_lr=1e-3",
    "--training.non_finite=skip",
    "--model.width=16",
    "--evaluation.samples=359",
    "--evaluation.every=0",
    "--checkpoint.every=0",
]


def run_name(split: str, rule: str, attackers: int) -> str:
    return f"{split}_{rule}_{attackers}"


def flags(split: str, rule: str, attackers: int) -> list[str]:
    chosen = [f"--data.shards={{shards}}/{split}", f"--aggregation.rule={rule}", *RULES[rule]]
    if attackers:
        chosen.append(f"--attack.devices={list(range(1, attackers + 1))}")
        chosen += ["--attack.kind=sign_flip", "--attack.strength=4"]
    return chosen


SETTINGS = {
    run_name(split, rule, attackers): flags(split, rule, attackers)
    for attackers in ATTACKERS
    for split in SPLITS
    for rule in RULES
}


def main() -> None:
    runs = study.Study(__doc__, SETTINGS, COMMON, seeds=1)
    runs.train()
    for split, description in SPLITS.items():
        head = ["", *(f"f = {n}" for n in ATTACKERS)]
        lines = [
            [rule, *(cell(runs, run_name(split, rule, n)) for n in ATTACKERS)] for rule in RULES
        ]
        print(f"\n{description}: distance (classes covered)\n{study.table(head, lines)}")
    draw(runs, runs.out / "breakdown.png")


def cell(runs: study.Study, name: str) -> str:
    classes = statistics.mean(runs.scores(name, "classes"))
    return f"{statistics.mean(runs.scores(name, 'frechet')):.0f} ({classes:.0f})"


def draw(runs: study.Study, path: Path) -> None:
    """Draw the distance against the number of attackers, a panel for each split."""
    figure = new_figure(9, 3.8)
    panels = figure.subplots(1, len(SPLITS), sharey=True)
    for axes, (split, description) in zip(panels, SPLITS.items(), strict=True):
        for rule in RULES:
            names = [run_name(split, rule, n) for n in ATTACKERS]
            distances = [statistics.mean(runs.scores(name, "frechet")) for name in names]
            axes.plot(ATTACKERS, distances, marker="o", label=rule)
        axes.set_title(description, fontsize="medium")
        axes.set_yscale("log")
        axes.set_xticks(ATTACKERS)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center")
    figure.supxlabel("attackers of 8 devices")
    figure.supylabel("Fréchet classifier distance")
    write_figure(figure, path)


if __name__ == "__main__":
    main()

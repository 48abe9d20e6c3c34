"""Aggregation rules and a detector under five attacks by 0 to 3 of 8 devices.

    python -m data_prep digits --devices 8 --out shards/digits/iid
    python -m data_prep digits --devices 8 --partition classes --classes 2 --out shards/digits/c2
    python benchmarks/breakdown.py --shards shards/digits --out runs/breakdown --ranks 1

Trains the runs that do not exist yet. Prints a table for each attack (--attacks) and split, and one
of the images that show the patch of the backdoor. Draws breakdown.png below `--out`, or with fewer
attacks breakdown_ATTACKS.png. The rules with an option f assume two attackers.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import product
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
    "norm_bound": [],
    "loss_outliers": [],
}
"""Name -> options. `loss_outliers` is a detector, with the mean."""
ATTACKS = {
    "sign_flip": ["--attack.strength=4"],
    "noise": ["--attack.strength=0.05"],
    "stale": [],
    "label_free": [],
    "backdoor": [],
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


def run_name(split: str, rule: str, attack: str, attackers: int) -> str:
    return f"{split}_{rule}_{attack}_{attackers}" if attackers else f"{split}_{rule}"


def flags(split: str, rule: str, attack: str, attackers: int) -> list[str]:
    key = "detector" if rule == "loss_outliers" else "rule"
    chosen = [f"--data.shards={{shards}}/{split}", f"--aggregation.{key}={rule}", *RULES[rule]]
    if attackers:
        chosen.append(f"--attack.devices={list(range(1, attackers + 1))}")
        chosen += [f"--attack.kind={attack}", *ATTACKS[attack]]
    return chosen


def main() -> None:
    attacks: list[str] = study.take_option(
        "--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS)
    )
    all_settings = product(SPLITS, RULES, attacks, ATTACKERS)
    settings = {run_name(*setting): flags(*setting) for setting in all_settings}
    runs = study.Study(__doc__, settings, COMMON, seeds=3)
    runs.train()
    for attack, (split, description) in product(attacks, SPLITS.items()):
        lines = [
            [rule, *(cell(runs, run_name(split, rule, attack, n)) for n in ATTACKERS)]
            for rule in RULES
        ]
        table = study.table(head(ATTACKERS), lines)
        print(f"\n{attack}, {description}: distance (classes covered)\n{table}")
    if "backdoor" in attacks:
        for split, description in SPLITS.items():
            print(f"\nbackdoor, {description}: generated images with the patch")
            print(backdoor_table(runs, split))
    name = "breakdown" if attacks == list(ATTACKS) else f"breakdown_{'_'.join(attacks)}"
    draw(runs, attacks, runs.out / f"{name}.png")


def backdoor_table(runs: study.Study, split: str) -> str:
    lines = []
    for rule in RULES:
        names = [run_name(split, rule, "backdoor", n) for n in ATTACKERS[1:]]
        shares = [runs.scores(name, "backdoor_share") for name in names]
        lines.append([rule, *(f"{statistics.mean(each):.1%}" for each in shares)])
    return study.table(head(ATTACKERS[1:]), lines)


def head(attackers: Sequence[int]) -> list[str]:
    return ["", *(f"f = {n}" for n in attackers)]


def cell(runs: study.Study, name: str) -> str:
    """Return the mean distance ± standard deviation and the mean number of classes covered."""
    classes = statistics.mean(runs.scores(name, "classes"))
    return f"{study.spread(runs.scores(name, 'frechet'), 0)} ({classes:.0f})"


def draw(runs: study.Study, attacks: list[str], path: Path) -> None:
    """Draw the mean distance against the number of attackers: a row per split, a column per
    attack."""
    figure = new_figure(2.6 * len(attacks) + 1.6, 5.2)
    panels = figure.subplots(len(SPLITS), len(attacks), sharex=True, sharey=True, squeeze=False)
    for axes, (split, attack) in zip(panels.flat, product(SPLITS, attacks), strict=True):
        for rule in RULES:
            names = [run_name(split, rule, attack, n) for n in ATTACKERS]
            distances = [statistics.mean(runs.scores(name, "frechet")) for name in names]
            axes.plot(ATTACKERS, distances, marker="o", markersize=3, label=rule)
        axes.set_yscale("log")
        axes.set_xticks(ATTACKERS)
        if axes in panels[0]:
            axes.set_title(attack, fontsize="medium")
        if axes in panels[:, 0]:
            axes.set_ylabel(SPLITS[split])
    figure.legend(*panels.flat[0].get_legend_handles_labels(), loc="outside right center")
    figure.supxlabel("attackers of 8 devices")
    figure.supylabel("Fréchet classifier distance")
    write_figure(figure, path)


if __name__ == "__main__":
    main()

"""Compares DiffAugment and ADA with training on unchanged images, on ten devices of 388 X-rays.

    python -m data_prep npz --source pneumoniamnist.npz --devices 10 --out shards/pneumonia28
    python benchmarks/few_images.py --shards shards/pneumonia28 --out runs/few_images

Other flags than those of --help go to every run. Trains the runs that do not exist yet. Prints a
table: mean ± standard deviation over seeds of the best score, its round, and the last score. Writes
few_images.png, the scores against rounds, into OUT.
"""

from __future__ import annotations

import statistics

import study

from fedgan_mpi.run.figures import new_figure, write_figure

CHANGES = '["color", "translation", "cutout"]'
AUGMENTS = {
    "unchanged": [],
    "DiffAugment": ["--training.augment", CHANGES],
    # 400 images a round: p can move by 1 in 50 rounds.
    "ADA": [
        "--training.augment", CHANGES, "--training.augment_target=0.6",
        "--training.augment_images=20000",
    ],
}  # fmt: skip
METHODS = {
    "ren": ["--training.generator_steps=5"],
    "fedgan": ["--algorithm.name=fedgan"],
}
RUNS = {
    f"{method}, {augment}": [*method_flags, *augment_flags]
    for method, method_flags in METHODS.items()
    for augment, augment_flags in AUGMENTS.items()
}
COMMON = [
    *study.NONSATURATING,
    "--training.rounds=300", "--training.discriminator_steps=5", "--training.batch_size=8",
    "--training.generator_batch_size=80", "--training.generator_lr=1e-3",
    "--training.discriminator_lr=1e-3", "--model.width=16", "--link.average=gather",
    "--evaluation.every=10", "--evaluation.samples=1148", "--checkpoint.every=50",
]  # fmt: skip


def draw(runs: study.Study) -> None:
    """Draw a panel per method, with a line per augmentation: the mean over seeds and its range."""
    names = {method: [n for n in runs.names if n.startswith(method)] for method in METHODS}
    names = {method: of_method for method, of_method in names.items() if of_method}
    figure = new_figure(4.5 * len(names), 3.4)
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, (method, of_method) in zip(panels, names.items(), strict=True):
        for name in of_method:
            histories = runs.histories(name)
            rounds = histories[0].scored_rounds
            values = list(zip(*(history.values for history in histories), strict=True))
            label = name.removeprefix(f"{method}, ")
            axes.plot(rounds, [statistics.mean(row) for row in values], label=label)
            axes.fill_between(rounds, [min(r) for r in values], [max(r) for r in values], alpha=0.2)
        axes.set(title=method, xlabel="rounds", yscale="log")
        axes.grid(alpha=0.25, linewidth=0.5)
    figure.axes[0].set_ylabel("Fréchet distance")
    figure.axes[0].legend(frameon=False)
    write_figure(figure, runs.out / "few_images.png")


def main() -> None:
    runs = study.Study(__doc__, RUNS, COMMON, seeds=3)
    runs.train()
    lines = []
    for name in runs.names:
        histories = runs.histories(name)
        best = [float(each.values.min()) for each in histories]
        at = [float(each.scored_rounds[each.values.argmin()]) for each in histories]
        last = [float(each.values[-1]) for each in histories]
        cells = [study.spread(best, 2), study.spread(at, 0), study.spread(last, 2)]
        lines.append([name, *cells])
    print(study.table(["", "best distance", "its round", "last distance"], lines))
    draw(runs)


if __name__ == "__main__":
    main()

"""Compares settings that could be the defaults at a size of images.

    python -m data_prep imagefolder --source CIFAR10.zip --size 32 --devices 4 --out shards/cifar32
    python benchmarks/defaults.py --shards shards/cifar32 --out runs/defaults32 --model.width=16
    python -m data_prep digits --devices 8 --out shards/digits
    python benchmarks/defaults.py --shards shards/digits --out runs/defaults16 --seeds 3

Other flags than --shards, --out, --seeds and --ranks go to every run. Trains the runs that do not
exist yet, one job after the other. Prints a table: mean ± standard deviation over seeds of the
Fréchet distance halfway and at the end, and the mean seconds of all rounds. All settings take the
same number of steps on D.
"""

from __future__ import annotations

import statistics

import study

ROUNDS = 600
COMMON = [
    f"--training.rounds={ROUNDS}", f"--evaluation.every={ROUNDS // 2}", "--checkpoint.every=0",
    "--evaluation.samples=2000", "--link.average=gather",
]  # fmt: skip
ONE = "--training.generator_steps=1"
THREE = "--training.generator_steps=3"
LINEAR = "--training.lr_schedule=linear"


def rates(generator: str, discriminator: str) -> list[str]:
    """Return the flags of both learning rates."""
    return [f"--training.generator_lr={generator}", f"--training.discriminator_lr={discriminator}"]


SETTINGS = {
    "three steps of G": [THREE, "--model.ema_warmup=false"],
    "three steps, the average warms up": [THREE],
    "three steps, 5e-4 falling": [THREE, *rates("5e-4", "5e-4"), LINEAR],
    "one step": [ONE],
    "one step, 5e-4": [ONE, *rates("5e-4", "5e-4")],
    "one step, 5e-4 falling": [ONE, *rates("5e-4", "5e-4"), LINEAR],
    "one step, 1e-3 falling": [ONE, *rates("1e-3", "1e-3"), LINEAR],
    "one step, G twice as fast": [ONE, *rates("1e-3", "5e-4"), LINEAR],
    "one step, D without BatchNorm": [ONE, "--model.discriminator_norm=none"],
    "one step, start of DCGAN": [ONE, "--model.initialization=dcgan"],
    "one step, sngan": [ONE, "--model.architecture=sngan"],
}


def main() -> None:
    runs = study.Study(__doc__, SETTINGS, COMMON, seeds=1)
    runs.train()
    lines = []
    for name in SETTINGS:
        histories = runs.histories(name)
        halfway = [float(history.values[len(history.values) // 2]) for history in histories]
        end = [float(history.values[-1]) for history in histories]
        seconds = statistics.mean(
            sum(line["seconds"] for line in history.rounds) for history in histories
        )
        lines.append([name, study.spread(halfway), study.spread(end), f"{seconds:.0f}"])
    print(study.table(["", "halfway", "end", "seconds"], lines))


if __name__ == "__main__":
    main()

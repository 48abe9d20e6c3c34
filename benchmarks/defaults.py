"""Compares settings that could be the defaults at a size of images.

    python -m data_prep imagefolder --source CIFAR10.zip --size 32 --devices 4 --out shards/cifar32
    python benchmarks/defaults.py --shards shards/cifar32 --out runs/defaults32 --model.width=16 \\
        --training.batch_size=16 --training.generator_batch_size=32
    python -m data_prep digits --devices 8 --out shards/digits
    python benchmarks/defaults.py --shards shards/digits --out runs/defaults16 --seeds 3 \\
        --evaluation.samples=359

Other flags than those of --help go to every run. Trains the runs that do not exist yet. Prints a
table: mean ± standard deviation over seeds of the Fréchet distance halfway and at the end, the mean
spread of generated images (standard deviation over z of a pixel, black and white are 2 apart; near
0, all images are alike), and the mean seconds of all rounds. All settings take the same number of
steps on D.
"""

from __future__ import annotations

import statistics
from pathlib import Path

import study

from fedgan_mpi import load_generator

ROUNDS = 600
COMMON = [
    *study.THREE_STEPS,
    f"--training.rounds={ROUNDS}", f"--evaluation.every={ROUNDS // 2}", "--checkpoint.every=0",
    "--evaluation.samples=2000", "--link.average=gather",
]  # fmt: skip
ONE = "--training.generator_steps=1"
THREE = "--training.generator_steps=3"
SIX = ["--training.generator_steps=6", "--training.generator_batch_size=32"]
LINEAR = "--training.lr_schedule=linear"
HINGE = "--training.loss=hinge"


def rates(generator: str, discriminator: str) -> list[str]:
    """Return the flags of both learning rates."""
    return [f"--training.generator_lr={generator}", f"--training.discriminator_lr={discriminator}"]


def local_steps(count: int, server_steps: int) -> list[str]:
    """Return the flags for several steps on each D per round, in fewer rounds."""
    flags = [f"--training.rounds={ROUNDS // count}", f"--evaluation.every={ROUNDS // count // 2}"]
    steps = (f"discriminator_steps={count}", f"generator_steps={server_steps}")
    return [*flags, *(f"--training.{step}" for step in steps), *rates("5e-4", "5e-4")]


SETTINGS = {
    "three steps of G": [THREE, "--model.ema_warmup=false"],
    "three steps, the average warms up": [THREE],
    "three steps, 5e-4 falling": [THREE, *rates("5e-4", "5e-4"), LINEAR],
    "three steps, hinge": [THREE, HINGE],
    "three steps, hinge, 5e-4 falling": [THREE, HINGE, *rates("5e-4", "5e-4"), LINEAR],
    "six steps, hinge, 3e-4": [*SIX, HINGE, *rates("3e-4", "3e-4"), "--model.ema=0.998"],
    "one step": [ONE],
    "one step, hinge": [ONE, HINGE],
    "one step, 5e-4": [ONE, *rates("5e-4", "5e-4")],
    "one step, 5e-4 falling": [ONE, *rates("5e-4", "5e-4"), LINEAR],
    "one step, 1e-3 falling": [ONE, *rates("1e-3", "1e-3"), LINEAR],
    "one step, G twice as fast": [ONE, *rates("1e-3", "5e-4"), LINEAR],
    "one step, D without BatchNorm": [ONE, "--model.discriminator_norm=none"],
    "one step, start of DCGAN": [ONE, "--model.initialization=dcgan"],
    "two steps of D, one of G": local_steps(2, 1),
    "two steps of D, two of G": local_steps(2, 2),
    "five steps of D, five of G": local_steps(5, 5),
    "one step, sngan": [ONE, "--model.architecture=sngan"],
}


def main() -> None:
    runs = study.Study(__doc__, SETTINGS, COMMON, seeds=1)
    runs.train()
    lines = []
    for name in runs.names:
        histories = runs.histories(name)
        halfway = [float(history.values[len(history.values) // 2]) for history in histories]
        end = [float(history.values[-1]) for history in histories]
        seconds = statistics.mean(
            sum(line["seconds"] for line in history.rounds) for history in histories
        )
        over_z = statistics.mean(spread_over_z(path) for path in runs.paths(name))
        cells = [study.spread(halfway), study.spread(end), f"{over_z:.2f}", f"{seconds:.0f}"]
        lines.append([name, *cells])
    print(study.table(["", "halfway", "end", "spread over z", "seconds"], lines))


def spread_over_z(run: Path) -> float:
    """Return the standard deviation over z of the run's last generator, a mean over pixels."""
    images = load_generator(run / "generator.safetensors")(256, seed=0)
    return float(images.std(axis=0).mean()) / 127.5


if __name__ == "__main__":
    main()

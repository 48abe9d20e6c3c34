"""Compares all algorithms and variants of averaging on images, at the same number of local D steps.

MNIST, five devices with two classes each, and PneumoniaMNIST, ten devices of 388 images:

    python -m data_prep mnist --source DIR --size 16 --devices 5 --partition classes --classes 2 \\
        --out shards/mnist_c2
    python benchmarks/image_algorithms.py --shards shards/mnist_c2 --out runs/mnist
    python -m data_prep npz --source pneumoniamnist.npz --devices 10 --out shards/pneumonia28
    python benchmarks/image_algorithms.py --shards shards/pneumonia28 --out runs/pneumonia \\
        --steps 500 --model.width=16 --training.batch_size=8 \\
        --training.generator_batch_size=80 --evaluation.samples=1148 --link.average=gather

Other flags than those of --help go to every run. Trains the runs that do not exist yet. Prints a
table: mean ± standard deviation of the last score over seeds.
"""

from __future__ import annotations

import study
from methods import METHODS, sgd_methods

LOCAL_STEPS = 5
SERVER = ["--training.generator_steps=1"]
COMMON = [
    *study.NONSATURATING,
    "--training.generator_lr=5e-4",
    "--training.discriminator_lr=5e-4",
    "--training.generator_batch_size=32",
    "--evaluation.samples=5000",
    "--evaluation.every=0",
    "--checkpoint.every=0",
]


def settings(steps: int) -> dict[str, list[str]]:
    """Return name -> flags. The names of settings with several local steps per round end in 5."""
    fewer_rounds = [
        f"--training.rounds={steps // LOCAL_STEPS}",
        f"--training.discriminator_steps={LOCAL_STEPS}",
    ]
    methods = {**METHODS, **sgd_methods(0.05)}
    ren = [*fewer_rounds, f"--training.generator_steps={LOCAL_STEPS}"]
    return {
        "centralized": ["--algorithm.name=centralized", *SERVER],
        "ren_serial": SERVER,
        "ren_parallel": ["--algorithm.schedule=parallel", *SERVER],
        "dp": ["--algorithm.name=dp_fedavg_gan", *SERVER],
        "fedgan": ["--algorithm.name=fedgan"],
        "fedgan5": ["--algorithm.name=fedgan", *fewer_rounds],
        "fegan": ["--algorithm.name=fegan"],
        "fess_gda5": ["--algorithm.name=fess_gda", *fewer_rounds],
        "mdgan": ["--algorithm.name=mdgan"],
        "uagan": ["--algorithm.name=uagan"],
        "ensemble": ["--algorithm.name=ensemble", *SERVER],
        "ren5": ren,
        "ren5, staleness 2": [*ren, "--wireless.on=true", "--algorithm.staleness=2"],
        **{f"ren5, {name}": [*ren, *flags] for name, flags in methods.items()},
    }


def main() -> None:
    steps: int = study.take_option("--steps", type=int, default=1000)
    flags = [*COMMON, f"--training.rounds={steps}"]
    runs = study.Study(__doc__, settings(steps), flags, seeds=3)
    runs.train()
    lines = []
    for name in runs.names:
        metrics = (("frechet", 1), ("classes", 1), ("class_total", 2))
        cells = [study.spread(runs.scores(name, metric), digits) for metric, digits in metrics]
        lines.append([name, *cells, str(len(runs.rounds(name))), f"{runs.megabytes(name):.0f}"])
    head = ["", "distance", "classes", "total variation", "rounds", "MB down + up per device"]
    print(study.table(head, lines))


if __name__ == "__main__":
    main()

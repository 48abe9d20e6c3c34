"""Compares all algorithms and variants of averaging on images, with 1,000 local D steps each.

MNIST, five devices with two classes each, and PneumoniaMNIST, ten devices of 388 images:

    python -m data_prep mnist --source DIR --size 16 --devices 5 --partition classes --classes 2 \\
        --out shards/mnist_c2
    python benchmarks/image_algorithms.py --shards shards/mnist_c2 --out runs/mnist
    python -m data_prep npz --source pneumoniamnist.npz --devices 10 --out shards/pneumonia28
    python benchmarks/image_algorithms.py --shards shards/pneumonia28 --out runs/pneumonia \\
        --model.width=16 --training.batch_size=8 --training.generator_batch_size=80 \\
        --evaluation.samples=1148 --link.average=gather

Other flags than those of --help go to every run. Trains the runs that do not exist yet. Prints a
table: mean ± standard deviation of the last score over seeds.
"""

from __future__ import annotations

import study
from methods import METHODS

STEPS, LOCAL_STEPS = 1000, 5
SERVER = ["--training.generator_steps=1"]
FEWER_ROUNDS = [
    f"--training.rounds={STEPS // LOCAL_STEPS}",
    f"--training.discriminator_steps={LOCAL_STEPS}",
]
REN = [*FEWER_ROUNDS, f"--training.generator_steps={LOCAL_STEPS}"]
SGD = [
    "--training.optimizer=sgd", "--training.discriminator_lr=0.05", "--training.generator_lr=0.05",
]  # fmt: skip
RUNS = {
    "centralized": ["--algorithm.name=centralized", *SERVER],
    "ren_serial": SERVER,
    "ren_parallel": ["--algorithm.schedule=parallel", *SERVER],
    "dp": ["--algorithm.name=dp_fedavg_gan", *SERVER],
    "fedgan": ["--algorithm.name=fedgan"],
    "fedgan5": ["--algorithm.name=fedgan", *FEWER_ROUNDS],
    "fegan": ["--algorithm.name=fegan"],
    "fess_gda5": ["--algorithm.name=fess_gda", *FEWER_ROUNDS],
    "mdgan": ["--algorithm.name=mdgan"],
    "uagan": ["--algorithm.name=uagan"],
    "ensemble": ["--algorithm.name=ensemble", *SERVER],
    "ren5": REN,
    **{f"ren5, {name}": [*REN, *flags] for name, flags in METHODS.items()},
    "ren5, staleness 2": [*REN, "--wireless.on=true", "--algorithm.staleness=2"],
    "ren5, SGD": [*REN, *SGD],
    "ren5, SCAFFOLD": [*REN, *SGD, "--algorithm.control_variates=true"],
}
COMMON = [
    *study.NONSATURATING,
    f"--training.rounds={STEPS}",
    "--training.generator_lr=5e-4",
    "--training.discriminator_lr=5e-4",
    "--training.generator_batch_size=32",
    "--evaluation.samples=5000",
    "--evaluation.every=0",
    "--checkpoint.every=0",
]


def main() -> None:
    runs = study.Study(__doc__, RUNS, COMMON, seeds=3)
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

"""Compares the algorithms on MNIST: five devices with two classes each, 1,000 local D steps.

    python -m data_prep mnist --source DIR --size 16 --devices 5 --partition classes --classes 2 \\
        --out shards/mnist_c2
    python benchmarks/mnist_algorithms.py --shards shards/mnist_c2 --out runs/mnist

Trains the runs that do not exist yet. Prints a table: mean ± standard deviation of the last score
over seeds.
"""

from __future__ import annotations

import study

STEPS = 1000
SERVER = ["--training.generator_steps=1"]
RUNS = {
    "centralized": ["--algorithm.name=centralized", *SERVER],
    "ren_serial": SERVER,
    "ren_parallel": ["--algorithm.schedule=parallel", *SERVER],
    "dp": ["--algorithm.name=dp_fedavg_gan", *SERVER],
    "fedgan": ["--algorithm.name=fedgan"],
    "fedgan5": [
        "--algorithm.name=fedgan",
        f"--training.rounds={STEPS // 5}",
        "--training.discriminator_steps=5",
    ],
    "fegan": ["--algorithm.name=fegan"],
    "fess_gda5": [
        "--algorithm.name=fess_gda",
        f"--training.rounds={STEPS // 5}",
        "--training.discriminator_steps=5",
    ],
    "mdgan": ["--algorithm.name=mdgan"],
    "uagan": ["--algorithm.name=uagan"],
    "ensemble": ["--algorithm.name=ensemble", *SERVER],
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

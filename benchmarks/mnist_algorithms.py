"""All algorithms on MNIST cut into five devices of two classes each, 1,000 local D steps a device.

    python -m data_prep mnist --source DIR --size 16 --devices 5 --partition classes --classes 2 \\
        --out shards/mnist_c2
    python benchmarks/mnist_algorithms.py --shards shards/mnist_c2 --out runs/mnist

Trains what is not there yet, one job after the other, and prints a table: mean ± standard deviation
over seeds of the last score.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

from fedgan_mpi.run.stats import read_stats

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
    "mdgan": ["--algorithm.name=mdgan"],
    "uagan": ["--algorithm.name=uagan"],
}
COMMON = [
    f"--training.rounds={STEPS}",
    "--training.generator_lr=5e-4",
    "--training.discriminator_lr=5e-4",
    "--training.generator_batch_size=32",
    "--evaluation.samples=5000",
    "--evaluation.every=0",
    "--checkpoint.every=0",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="where the run directories are")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ranks", type=int, default=3)
    args = parser.parse_args()
    for seed in range(args.seeds):
        for name, options in RUNS.items():
            run = args.out / f"{name}_{seed}"
            if not (run / "generator.safetensors").exists():
                command = ["mpirun", "-n", str(args.ranks), sys.executable, "-m", "fedgan_mpi"]
                command += [f"--data.shards={args.shards}", *COMMON, *options]
                command += [f"--run.directory={args.out}", f"--run.name={run.name}"]
                subprocess.run([*command, f"--run.seed={seed}"], check=True)
    print(table(args.out, args.seeds))


def table(out: Path, seeds: int) -> str:
    lines = [
        "| | distance | classes | total variation | rounds | MB down + up a device |",
        "|---|---|---|---|---|---|",
    ]
    for name in RUNS:
        stats = [read_stats(out / f"{name}_{seed}") for seed in range(seeds)]
        cells = []
        for metric, digits in (("frechet", 1), ("classes", 1), ("class_total", 2)):
            last = [
                [score["value"] for score in scores if score["metric"].startswith(metric)][-1]
                for _, scores in stats
            ]
            spread = statistics.stdev(last) if seeds > 1 else 0.0
            cells.append(f"{statistics.mean(last):.{digits}f} ± {spread:.{digits}f}")
        rounds = stats[0][0]
        sent = sum(line["bytes_down"] + line["bytes_up"] for line in rounds)
        devices = len(rounds[0]["participants"])
        cells += [str(len(rounds)), f"{sent / devices / 1e6:.0f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

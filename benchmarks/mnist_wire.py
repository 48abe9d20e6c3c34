"""What 16 bits cost in quality: the paper's serial schedule on MNIST with each wire, and with
bfloat16 inside the networks.

    python -m data_prep mnist --source DIR --size 16 --devices 4 --partition iid --out shards/iid
    python benchmarks/mnist_wire.py --shards shards/iid --out runs/wire

Trains what is not there yet, one job after the other, and prints a table: mean ± standard deviation
over seeds of the last score, and the mean difference to float32 seed by seed.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

from fedgan_mpi.run.record import read_stats

INSIDE = ["--training.autocast=bfloat16", "--training.memory_format=channels_last"]
RUNS = {
    "float32": [],
    "bfloat16": ["--link.wire_dtype=bfloat16"],
    "bfloat16, feedback": ["--link.wire_dtype=bfloat16", "--link.error_feedback=true"],
    "float16": ["--link.wire_dtype=float16"],
    "float16, feedback": ["--link.wire_dtype=float16", "--link.error_feedback=true"],
    "float32, bfloat16 inside": INSIDE,
    "bfloat16, feedback, bfloat16 inside": [
        "--link.wire_dtype=bfloat16",
        "--link.error_feedback=true",
        *INSIDE,
    ],
}
COMMON = [
    "--training.generator_steps=1",
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
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ranks", type=int, default=3)
    args = parser.parse_args()
    for seed in range(args.seeds):
        for name, options in RUNS.items():
            run = args.out / directory(name, seed)
            if not (run / "generator.safetensors").exists():
                command = ["mpirun", "-n", str(args.ranks), sys.executable, "-m", "fedgan_mpi"]
                command += [f"--data.shards={args.shards}", *COMMON, *options]
                command += [f"--training.rounds={args.rounds}", f"--run.seed={seed}"]
                command += [f"--run.directory={args.out}", f"--run.name={run.name}"]
                subprocess.run(command, check=True)
    print(table(args.out, args.seeds))


def directory(name: str, seed: int) -> str:
    return f"{name.replace(', ', '_').replace(' ', '_')}_{seed}"


def table(out: Path, seeds: int) -> str:
    lines = [
        "| wire | distance | minus float32's | classes | MB down + up a device |",
        "|---|---|---|---|---|",
    ]
    reference = last_scores(out, "float32", seeds, "frechet")
    for name in RUNS:
        distances = last_scores(out, name, seeds, "frechet")
        classes = statistics.mean(last_scores(out, name, seeds, "classes"))
        differences = [a - b for a, b in zip(distances, reference, strict=True)]
        rounds, _ = read_stats(out / directory(name, 0))
        sent = sum(line["bytes_down"] + line["bytes_up"] for line in rounds)
        cells = [
            _spread(distances),
            _spread(differences) if name != "float32" else "",
            f"{classes:.1f}",
            f"{sent / len(rounds[0]['participants']) / 1e6:.1f}",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def last_scores(out: Path, name: str, seeds: int, metric: str) -> list[float]:
    """The last score of each seed's run."""
    found = []
    for seed in range(seeds):
        _, scores = read_stats(out / directory(name, seed))
        found.append([s["value"] for s in scores if s["metric"].startswith(metric)][-1])
    return found


def _spread(values: list[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.1f} ± {spread:.1f}"


if __name__ == "__main__":
    main()

"""Measures the quality loss of 16-bit messages and of bfloat16 networks: serial schedule, MNIST.

    python -m data_prep mnist --source DIR --size 16 --devices 4 --partition iid --out shards/iid
    python benchmarks/mnist_wire.py --shards shards/iid --out runs/wire

Trains the runs that do not exist yet. The value of a run is the mean of
its last three scores, 100 rounds apart. Prints a table: mean ± standard deviation over seeds, and
the mean difference to float32 seed by seed with its standard error. Without avx512_bf16, the
setting with bfloat16 networks is skipped.
"""

from __future__ import annotations

import math
import statistics

import study

from fedgan_mpi.hardware.cpu import multiplies_bfloat16

WIRE_TYPES = {
    "float32": [],
    "bfloat16": ["--link.wire_dtype=bfloat16"],
    "bfloat16, feedback": ["--link.wire_dtype=bfloat16", "--link.error_feedback=true"],
    "float16": ["--link.wire_dtype=float16"],
}
AUTOCAST = {
    "float32, bfloat16 networks": [
        "--training.autocast=bfloat16",
        "--training.memory_format=channels_last",
    ],
}
COMMON = [
    *study.THREE_STEPS,
    "--training.rounds=600",
    "--evaluation.samples=5000",
    "--evaluation.every=100",
    "--checkpoint.every=0",
]


def main() -> None:
    settings = {**WIRE_TYPES, **(AUTOCAST if multiplies_bfloat16() else {})}
    runs = study.Study(__doc__, settings, COMMON, seeds=5, last=3)
    runs.train()
    reference = runs.scores("float32", "frechet")
    lines = []
    for name in settings:
        distances, classes = runs.scores(name, "frechet"), runs.scores(name, "classes")
        differences = [a - b for a, b in zip(distances, reference, strict=True)]
        difference = "" if name == "float32" else with_error(differences)
        megabytes = f"{runs.megabytes(name):.1f}"
        cells = [study.spread(distances), difference, f"{statistics.mean(classes):.1f}", megabytes]
        lines.append([name, *cells])
    head = ["wire type", "distance", "minus float32", "classes", "MB down + up per device"]
    print(study.table(head, lines))


def with_error(values: list[float]) -> str:
    """Return the mean ± standard error."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{statistics.mean(values):.1f} ± {error:.1f}"


if __name__ == "__main__":
    main()

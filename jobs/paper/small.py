"""The paper's experiment in small, from two data sets to tables and pictures, on two cores.

    pip install ".[mpich]"
    python jobs/paper/small.py --mnist DIR --pneumonia FILE --out paper_small

DIR holds MNIST's four idx files, or torchvision's MNIST/ folder; FILE is pneumoniamnist.npz
(docs/data.md says where to get both). What is there already is not done again, so the same command
goes on after an interruption. With --extras, the one-seed runs of small/extras.txt, too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from report import write_reports
from variants import read_variants

from fedgan_mpi.cli.parser import parse_train

HERE = Path(__file__).resolve().parent / "small"
DATA_SETS = ("mnist", "pneumonia")
COSTS = "seconds.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mnist", type=Path, required=True, help="directory of MNIST's files")
    parser.add_argument("--pneumonia", type=Path, required=True, help="pneumoniamnist.npz")
    parser.add_argument("--out", type=Path, default=Path("paper_small"))
    parser.add_argument("--ranks", type=int, default=3, help="MPI ranks; results do not depend")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--extras", action="store_true", help="the one-seed runs, too")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    mnist, pneumonia = ("mnist", args.mnist.resolve()), ("npz", args.pneumonia.resolve())
    prepare(args.out, "mnist", *mnist)
    prepare(args.out, "pneumonia", *pneumonia)
    variants = read_variants(HERE / "variants.txt")
    for seed in range(args.seeds):
        for data in DATA_SETS:
            for name, flags in variants.items():
                train(args.out, f"{data}-{name}-seed{seed}", data, seed, flags, args.ranks)
    if args.extras:
        prepare(args.out, "mnist-classes2", *mnist, "--partition", "classes", "--classes", "2")
        for name, flags in read_variants(HERE / "extras.txt").items():
            train(args.out, f"mnist-{name}-seed0", "mnist", 0, flags, args.ranks)
    write_reports(args.out, DATA_SETS, list(variants))


def prepare(out: Path, name: str, source: str, path: Path, *flags: str) -> None:
    """Cut a data set into the shards of ten devices, at 32 pixels."""
    if not (out / "shards" / name / "shards.json").exists():
        options = ["--source", str(path), "--size", "32", "--devices", "10", *flags]
        python(out, "-m", "data_prep", source, *options, "--out", f"shards/{name}", name=name)


def train(out: Path, run: str, data: str, seed: int, flags: Sequence[str], ranks: int) -> None:
    """One run, or what is left of it."""
    experiment = str(HERE / f"{data}.toml")
    rounds = parse_train([experiment, *flags]).config.training.rounds
    if rounds_of(out / "runs" / run) == rounds:
        return
    options = ["--run.name", run, "--run.seed", str(seed), "--resume", "auto", *flags]
    command = ["-m", "fedgan_mpi", "train", experiment, *options]
    python(out, *command, name=run, launcher=("mpirun", "-n", str(ranks)))
    if rounds_of(out / "runs" / run) != rounds:
        sys.exit(f"{out / 'runs' / run} has not ended after {rounds} rounds; see {out / 'log.txt'}")


def rounds_of(run: Path) -> int | None:
    """After how many rounds a run has ended; None where it has not."""
    exported = run / "generator.json"
    if not exported.exists() or not (run / "report.html").exists():
        return None
    rounds: int = json.loads(exported.read_text(encoding="utf-8"))["round"]
    return rounds


def python(out: Path, *arguments: str, name: str, launcher: Sequence[str] = ()) -> None:
    """Run a Python of this environment in `out`, and note wall and processor seconds."""
    print(name, flush=True)
    began, before = time.monotonic(), os.times()
    # Ranks set their own threads.
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    with open(out / "log.txt", "a", encoding="utf-8") as log:
        done = subprocess.run(
            [*launcher, sys.executable, *arguments],
            cwd=out, env=environment, stdout=log, stderr=log,
        )  # fmt: skip
    if done.returncode != 0:
        sys.exit(f"{name} ended with {done.returncode}; see {out / 'log.txt'}")
    after = os.times()
    spent = after.children_user + after.children_system
    spent -= before.children_user + before.children_system
    line = {"name": name, "seconds": time.monotonic() - began, "processor_seconds": spent}
    with open(out / COSTS, "a", encoding="utf-8") as costs:
        costs.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()

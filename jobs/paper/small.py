"""The paper's comparison at small scale: shards, training, tables and plots, on two cores.

    pip install ".[mpich]"
    python jobs/paper/small.py --mnist DIR --pneumonia FILE --out paper_small

DIR holds MNIST's four idx files, or torchvision's MNIST/ folder. FILE is pneumoniamnist.npz.
Finished steps are skipped, so the same command continues after an interruption. --extras adds the
runs of small/extras.txt, with one seed each.
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
TIMES = "seconds.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mnist", type=Path, required=True, help="directory of MNIST's files")
    parser.add_argument("--pneumonia", type=Path, required=True, help="pneumoniamnist.npz")
    parser.add_argument("--out", type=Path, default=Path("paper_small"))
    parser.add_argument(
        "--ranks", type=int, default=3, help="MPI ranks; results do not depend on it"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--extras", action="store_true", help="also run small/extras.txt")
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
    """Write the shards of ten devices at 32 pixels, unless they exist."""
    if not (out / "shards" / name / "shards.json").exists():
        options = ["--source", str(path), "--size", "32", "--devices", "10", *flags]
        run_python(out, "-m", "data_prep", source, *options, "--out", f"shards/{name}", name=name)


def train(out: Path, run: str, data: str, seed: int, flags: Sequence[str], ranks: int) -> None:
    """Train or continue a run, unless it has finished."""
    experiment = str(HERE / f"{data}.toml")
    rounds = parse_train([experiment, *flags]).config.training.rounds
    if completed_rounds(out / "runs" / run) == rounds:
        return
    options = ["--run.name", run, "--run.seed", str(seed), "--resume", "auto", *flags]
    command = ["-m", "fedgan_mpi", "train", experiment, *options]
    run_python(out, *command, name=run, launcher=("mpirun", "-n", str(ranks)))
    if completed_rounds(out / "runs" / run) != rounds:
        sys.exit(f"{out / 'runs' / run} did not finish {rounds} rounds; see {out / 'log.txt'}")


def completed_rounds(run: Path) -> int | None:
    """Return the rounds of a finished run; None if it has not finished."""
    exported = run / "generator.json"
    if not exported.exists() or not (run / "report.html").exists():
        return None
    rounds: int = json.loads(exported.read_text(encoding="utf-8"))["round"]
    return rounds


def run_python(out: Path, *arguments: str, name: str, launcher: Sequence[str] = ()) -> None:
    """Run this environment's Python in `out`, and append wall and CPU seconds to seconds.jsonl."""
    print(name, flush=True)
    start, before = time.monotonic(), os.times()
    # Each rank sets its own number of threads.
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    with open(out / "log.txt", "a", encoding="utf-8") as log:
        done = subprocess.run(
            [*launcher, sys.executable, *arguments],
            cwd=out, env=environment, stdout=log, stderr=log,
        )  # fmt: skip
    if done.returncode != 0:
        sys.exit(f"{name} failed with exit status {done.returncode}; see {out / 'log.txt'}")
    after = os.times()
    cpu_seconds = after.children_user + after.children_system
    cpu_seconds -= before.children_user + before.children_system
    line = {"name": name, "seconds": time.monotonic() - start, "cpu_seconds": cpu_seconds}
    with open(out / TIMES, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()

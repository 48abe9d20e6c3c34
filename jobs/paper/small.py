"""The paper's comparison at small scale: shards, training, tables and plots, on two cores.

    pip install ".[mpich]"
    python jobs/paper/small.py --mnist DIR --pneumonia FILE --out paper_small
    pip install ".[mpich,imagenet]"
    python jobs/paper/small.py --cifar FILE --out paper_cifar

DIR holds MNIST's four idx files, or torchvision's MNIST/ folder. The file of --pneumonia is
pneumoniamnist.npz. The file of --cifar is a .zip with CIFAR-10's pictures, train/CLASS/ and
test/CLASS/. Finished steps are skipped, so the same command continues after an interruption.
--only leaves data sets out, so that two commands can share the work.
--extras adds the runs of small/extras.txt on MNIST, with one seed each.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from report import write_reports
from variants import read_variants

from fedgan_mpi.cli.parser import parse_train
from fedgan_mpi.evaluation.evaluate import EVALUATION

HERE = Path(__file__).resolve().parent / "small"
TIMES = "seconds.jsonl"
IMAGENET = ("--evaluation.extractor=imagenet", "--imagenet-size=96", "--metrics=frechet")


@dataclass(frozen=True)
class DataSet:
    """Shards of ten devices at 32 pixels, and the table of variants that train on them."""

    given_by: str
    source: str
    partition: tuple[str, ...] = ()
    variants: str = "variants.txt"
    has_imagenet_scores: bool = False


CLASSES2 = ("--partition", "classes", "--classes", "2")
DIRICHLET = ("--partition", "dirichlet", "--alpha", "0.3")
CIFAR = {"variants": "cifar_variants.txt", "has_imagenet_scores": True}
DATA_SETS = {
    "mnist": DataSet("mnist", "mnist"),
    "pneumonia": DataSet("pneumonia", "npz"),
    "cifar": DataSet("cifar", "imagefolder", **CIFAR),
    "cifar-dirichlet": DataSet("cifar", "imagefolder", DIRICHLET, **CIFAR),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mnist", type=Path, help="directory of MNIST's files")
    parser.add_argument("--pneumonia", type=Path, help="pneumoniamnist.npz")
    parser.add_argument("--cifar", type=Path, help=".zip of CIFAR-10's pictures")
    parser.add_argument("--out", type=Path, default=Path("paper_small"))
    parser.add_argument(
        "--ranks", type=int, default=3, help="MPI ranks; results do not depend on it"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--only", nargs="+", choices=DATA_SETS, default=[*DATA_SETS], help="these data sets"
    )
    parser.add_argument("--extras", action="store_true", help="also run small/extras.txt")
    args = parser.parse_args()
    given = {name: DATA_SETS[name] for name in args.only if getattr(args, DATA_SETS[name].given_by)}
    if not given or (args.extras and not args.mnist):
        parser.error("give --mnist, --pneumonia or --cifar; --extras needs --mnist")
    args.out.mkdir(parents=True, exist_ok=True)
    for name, data in given.items():
        prepare(args.out, name, data, getattr(args, data.given_by))
    tables = {name: read_variants(HERE / data.variants) for name, data in given.items()}
    for seed in range(args.seeds):
        for name, data in given.items():
            for variant, flags in tables[name].items():
                run = f"{name}-{variant}-seed{seed}"
                shards = f"--data.shards=shards/{name}"
                train(args.out, run, data.given_by, seed, [shards, *flags], args.ranks)
                if data.has_imagenet_scores:
                    score_imagenet(args.out, run, args.ranks)
    if args.extras:
        prepare(args.out, "mnist-classes2", DataSet("mnist", "mnist", CLASSES2), args.mnist)
        for variant, flags in read_variants(HERE / "extras.txt").items():
            train(args.out, f"mnist-{variant}-seed0", "mnist", 0, flags, args.ranks)
    write_reports(args.out, {name: list(variants) for name, variants in tables.items()})


def prepare(out: Path, name: str, data: DataSet, path: Path) -> None:
    """Write the shards, unless they exist."""
    if not (out / "shards" / name / "shards.json").exists():
        options = ["--source", str(path.resolve()), "--size", "32", "--devices", "10"]
        command = ["-m", "data_prep", data.source, *options, *data.partition]
        run_python(out, *command, "--out", f"shards/{name}", name=name)


def train(out: Path, run: str, name: str, seed: int, flags: Sequence[str], ranks: int) -> None:
    """Train or continue a run of small/NAME.toml, unless it has finished."""
    experiment = str(HERE / f"{name}.toml")
    rounds = parse_train([experiment, *flags]).config.training.rounds
    if completed_rounds(out / "runs" / run) == rounds:
        return
    options = ["--run.name", run, "--run.seed", str(seed), "--resume", "auto", *flags]
    command = ["-m", "fedgan_mpi", "train", experiment, *options]
    run_python(out, *command, name=run, launcher=("mpirun", "-n", str(ranks)))
    if completed_rounds(out / "runs" / run) != rounds:
        sys.exit(f"{out / 'runs' / run} did not finish {rounds} rounds; see {out / 'log.txt'}")


def score_imagenet(out: Path, run: str, ranks: int) -> None:
    """Score the last and the best generator of a finished run with ImageNet features.

    Removes the checkpoints, which hold the last generator once more.
    """
    directory = out / "runs" / run
    shutil.rmtree(directory / "checkpoints", ignore_errors=True)
    scores = directory / EVALUATION  # has a line for each generator that is scored
    if not scores.exists() or len(scores.read_text(encoding="utf-8").splitlines()) < 2:
        command = ["-m", "fedgan_mpi", "evaluate", f"runs/{run}", *IMAGENET]
        run_python(out, *command, name=f"{run} imagenet", launcher=("mpirun", "-n", str(ranks)))


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

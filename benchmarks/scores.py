"""Measures the cost of scores: `evaluate` on two ranks against one, and scores during training.

    python benchmarks/scores.py evaluate RUN
    python benchmarks/scores.py training

`evaluate` runs `evaluate RUN` on 1 and 2 ranks in turn, three times, with one core per rank and
without stored statistics of real images. It is timed in total and without start-up, which is the
same command once all scores exist. RUN should have thousands of held-out images and several
checkpoints. `training` compares the default job with and without scores. Prints JSON.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common

from fedgan_mpi.config.io import read_config
from fedgan_mpi.run.stats import read_stats

REPEATS = 3
PROGRAM = [sys.executable, "-m", "fedgan_mpi"]


def evaluate_seconds(run: Path, ranks: int) -> tuple[float, float]:
    """Return the seconds without any scores, and with all scores: the start-up alone."""
    shards = Path(read_config(run / "config.toml").data.shards or run / "shards")
    shutil.rmtree(shards / ".statistics", ignore_errors=True)
    (run / "evaluation.jsonl").unlink(missing_ok=True)
    command = common.mpirun(ranks, *PROGRAM, "evaluate", str(run))
    one_core = {**os.environ, "OMP_NUM_THREADS": "1"}
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=one_core)
        seconds.append(time.perf_counter() - start)
    return seconds[0], seconds[1]


def round_seconds(directory: Path, every: int) -> float:
    """Return the seconds per round of the default job, with the scores and grids in between."""
    flags = ["--training.rounds=401", "--checkpoint.every=0", f"--evaluation.every={every}"]
    command = common.mpirun(9, *PROGRAM, *flags, f"--run.directory={directory}")
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stamps: dict[int, float] = {}
    while process.poll() is None:
        for stats in directory.glob("*/stats.jsonl"):
            rounds, _ = read_stats(stats.parent) if stats.read_text().endswith("\n") else ([], [])
            stamps.setdefault(len(rounds), time.perf_counter())
        time.sleep(0.02)
    assert process.returncode == 0
    first = min(n for n in stamps if n >= 1)
    last = max(n for n in stamps if n <= 401)
    return (stamps[last] - stamps[first]) / (last - first)


def measure_evaluate(run: Path) -> dict[str, object]:
    total, without_start, seconds = [], [], []
    for _ in range(REPEATS):
        (total_1, start_1), (total_2, start_2) = (evaluate_seconds(run, n) for n in (1, 2))
        total.append(total_1 / total_2)
        without_start.append((total_1 - start_1) / (total_2 - start_2))
        seconds.append([total_1, start_1, total_2, start_2])
    return {
        "speedup_of_2_ranks": common.summary(total),
        "speedup_of_2_ranks_without_start": common.summary(without_start),
        "seconds_1_rank_start_2_ranks_start": [[round(s, 2) for s in r] for r in seconds],
    }


def measure_training() -> dict[str, object]:
    ratios = []
    for _ in range(REPEATS):
        with tempfile.TemporaryDirectory() as scored, tempfile.TemporaryDirectory() as unscored:
            seconds = round_seconds(Path(scored), 100)
            ratios.append(seconds / round_seconds(Path(unscored), 0))
    return {"default_job_with_scores / without": common.summary(ratios)}


def main() -> None:
    parser = common.make_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("evaluate").add_argument("run", type=Path, metavar="RUN")
    commands.add_parser("training")
    args = parser.parse_args()
    result = measure_evaluate(args.run) if args.command == "evaluate" else measure_training()
    common.print_json(result)


if __name__ == "__main__":
    main()

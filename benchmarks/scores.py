"""What scores cost: `evaluate` on two ranks against one, and scoring in training against none.

    python benchmarks/scores.py evaluate RUN
    python benchmarks/scores.py training

`evaluate` times `evaluate RUN` on 1 and 2 ranks, a core each, from nothing (real images' sums
included), three times in turn: the whole command, and less its start, that is the same command
where all scores are there. RUN: a run with some thousand held-out images and several checkpoints.
`training` times the default job with its scores and without. Prints JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fedgan_mpi.cli.parser import read_config
from fedgan_mpi.run.stats import read_stats

REPEATS = 3
PROGRAM = [sys.executable, "-m", "fedgan_mpi"]


def evaluate_seconds(run: Path, ranks: int) -> tuple[float, float]:
    """(from nothing, with all scores there already: what starting costs)."""
    shards = Path(read_config(run / "config.toml").data.shards or run / "shards")
    shutil.rmtree(shards / ".statistics", ignore_errors=True)
    (run / "evaluation.jsonl").unlink(missing_ok=True)
    command = ["mpirun", "-n", str(ranks), *PROGRAM, "evaluate", str(run)]
    one_core = {**os.environ, "OMP_NUM_THREADS": "1"}
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=one_core)
        seconds.append(time.perf_counter() - began)
    return seconds[0], seconds[1]


def default_job_seconds(directory: Path, every: int) -> float:
    """From the first round's end to the last's, scores and grids within."""
    command = ["mpirun", "-n", "9", *PROGRAM, "--training.rounds=401", "--checkpoint.every=0"]
    command += [f"--evaluation.every={every}", f"--run.directory={directory}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stamps: dict[int, float] = {}
    while process.poll() is None:
        for run in directory.glob("*/stats.jsonl"):
            rounds, _ = read_stats(run.parent) if run.read_text().endswith("\n") else ([], [])
            stamps.setdefault(len(rounds), time.perf_counter())
        time.sleep(0.02)
    assert process.returncode == 0
    first = min(n for n in stamps if n >= 1)
    last = max(n for n in stamps if n <= 401)
    return (stamps[last] - stamps[first]) / (last - first)


def measure_evaluate(run: Path) -> dict[str, object]:
    whole, less_start, seconds = [], [], []
    for _ in range(REPEATS):
        (whole_1, start_1), (whole_2, start_2) = (evaluate_seconds(run, n) for n in (1, 2))
        whole.append(whole_1 / whole_2)
        less_start.append((whole_1 - start_1) / (whole_2 - start_2))
        seconds.append([whole_1, start_1, whole_2, start_2])
    return {
        "speedup_of_2_ranks": _summary(whole),
        "speedup_of_2_ranks_less_start": _summary(less_start),
        "seconds_1_rank_start_2_ranks_start": [[round(s, 2) for s in r] for r in seconds],
    }


def measure_training() -> dict[str, object]:
    costs = []
    for _ in range(REPEATS):
        with tempfile.TemporaryDirectory() as scored, tempfile.TemporaryDirectory() as plain:
            with_scores = default_job_seconds(Path(scored), 100)
            costs.append(with_scores / default_job_seconds(Path(plain), 0))
    return {"default_job_with_scores_to_without": _summary(costs)}


def _summary(ratios: list[float]) -> dict[str, float]:
    median = statistics.median(ratios)
    return {
        name: round(f, 3)
        for name, f in (("median", median), ("min", min(ratios)), ("max", max(ratios)))
    }


def main() -> None:
    asked, *run = sys.argv[1:]
    result = measure_evaluate(Path(run[0])) if asked == "evaluate" else measure_training()
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

"""How long a job with `link.survive` is held up when a device rank is killed. Needs Open MPI 5.

    python benchmarks/survive.py [--jobs 5]

Each job has a server and three devices; a device gets SIGKILL in its rounds. Prints, as JSON,
seconds from the kill to the end of the first round without it, all of them and their median, beside
the median of a round before the kill; and the status of the jobs, which must be 0. Wanted: below 1.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

JOB = [
    "mpirun", "--with-ft", "ulfm", "--oversubscribe", "--allow-run-as-root", "-n", "4",
    sys.executable, "-m", "fedgan_mpi", "--link.survive=true", "--data.devices=3",
    "--training.rounds=400", "--evaluation.every=0", "--checkpoint.every=50", "--run.name=a",
]  # fmt: skip


def rounds(stats: Path) -> list[dict]:
    """Whole lines of rounds."""
    text = stats.read_text() if stats.exists() else ""
    lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("}\n")]
    return [line for line in lines if "metric" not in line]


def rank_process(job: subprocess.Popen[str], rank: int) -> int:
    (found,) = (
        process.pid
        for process in psutil.Process(job.pid).children(recursive=True)
        if process.environ().get("OMPI_COMM_WORLD_RANK") == str(rank)
    )
    return found


def one_death(cwd: Path, rank: int) -> tuple[float, float, int]:
    """(seconds that it cost, seconds of a round before, status)."""
    stats = cwd / "runs" / "a" / "stats.jsonl"
    with open(cwd / "log.txt", "w") as log:
        job = subprocess.Popen(JOB, cwd=cwd, stdout=log, stderr=log, text=True)
    while len(rounds(stats)) < 50:
        assert job.poll() is None, (cwd / "log.txt").read_text()
        time.sleep(0.02)
    process = rank_process(job, rank)
    os.kill(process, signal.SIGKILL)
    killed = time.perf_counter()
    while not re.search(r"has died, .* after round (\d+)", told := (cwd / "log.txt").read_text()):
        assert job.poll() is None, told
        time.sleep(0.002)
    after = int(re.findall(r"has died, .* after round (\d+)", told)[0])
    while not (now := rounds(stats)) or now[-1]["round"] <= after:
        time.sleep(0.002)
    seconds = time.perf_counter() - killed
    usual = statistics.median(line["seconds"] for line in now[10:50])
    return seconds, usual, job.wait(120)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=5)
    jobs = parser.parse_args().jobs
    results = []
    for number in range(jobs):
        with tempfile.TemporaryDirectory() as cwd:
            results.append(one_death(Path(cwd), 1 + number % 3))
    held_up, usual, statuses = zip(*results, strict=True)
    print(
        json.dumps({
            "median, s": round(statistics.median(held_up), 3),
            "all, s": [round(seconds, 3) for seconds in held_up],
            "a round, s": round(statistics.median(usual), 4),
            "statuses": statuses,
        })
    )  # fmt: skip
    sys.exit(max(statuses) > 0)


if __name__ == "__main__":
    main()

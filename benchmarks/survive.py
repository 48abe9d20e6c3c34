"""Measures how long a killed device rank delays a job with `link.survive`. Needs Open MPI 5.

    python benchmarks/survive.py [--jobs 5]

Each job has a server and three devices, and one device rank gets SIGKILL during the rounds. The
delay lasts from the kill to the end of the first round without the device. Prints JSON: the delays
in seconds, their median, the median of a round before the kill, and the exit statuses. These must
be 0. Limit: 1 s.
"""

from __future__ import annotations

import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common

from fedgan_mpi.testing.jobs import MPIRUN, rank_processes
from fedgan_mpi.testing.runs import completed_rounds

JOB = [
    MPIRUN, "--with-ft", "ulfm", "--oversubscribe", "--allow-run-as-root", "-n", "4",
    sys.executable, "-m", "fedgan_mpi", "--link.survive=true", "--data.devices=3",
    "--training.rounds=400", "--evaluation.every=0", "--checkpoint.every=50", "--run.name=a",
]  # fmt: skip
WARM_UP = 50
"""Rounds before the kill."""


def measure_kill(cwd: Path, rank: int) -> tuple[float, float, int]:
    """Return the seconds of the delay, the median seconds of a round before, and the status."""
    run, log = cwd / "runs" / "a", cwd / "log.txt"
    with open(log, "w") as file:
        job = subprocess.Popen(JOB, cwd=cwd, stdout=file, stderr=file, text=True)
    while len(completed_rounds(run)) < WARM_UP:
        assert job.poll() is None, log.read_text()
        time.sleep(0.02)
    os.kill(rank_processes(job)[rank], signal.SIGKILL)
    killed = time.perf_counter()
    while not (message := re.search(r"has died, .* after round (\d+)", log.read_text())):
        assert job.poll() is None, log.read_text()
        time.sleep(0.002)
    last_complete = int(message[1])
    while not (rounds := completed_rounds(run)) or rounds[-1]["round"] <= last_complete:
        time.sleep(0.002)
    seconds = time.perf_counter() - killed
    round_seconds = statistics.median(line["seconds"] for line in rounds[10:WARM_UP])
    return seconds, round_seconds, job.wait(120)


def main() -> None:
    parser = common.make_parser(__doc__)
    parser.add_argument("--jobs", type=int, default=5)
    jobs = parser.parse_args().jobs
    results = []
    for number in range(jobs):
        with tempfile.TemporaryDirectory() as cwd:
            results.append(measure_kill(Path(cwd), 1 + number % 3))
    delays, rounds, statuses = zip(*results, strict=True)
    common.print_json(
        {
            "median_s": round(statistics.median(delays), 3),
            "all_s": [round(seconds, 3) for seconds in delays],
            "round_s": round(statistics.median(rounds), 4),
            "statuses": statuses,
        }
    )
    sys.exit(max(statuses) > 0)


if __name__ == "__main__":
    main()

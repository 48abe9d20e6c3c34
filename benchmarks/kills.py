"""Kills ranks in every phase of a job, resumes the run, and looks for differences at its end.

    python benchmarks/kills.py [--kills 20] [--jobs ren fedgan …] [--devices 3]

Each job has an uninterrupted run. In its other runs, the server or a device rank gets SIGKILL
before each `--resume`. Every second kill waits for a phase that is drawn from the phases of the
uninterrupted run. The others happen at random times. Each job has three ranks. The jobs are the
algorithms, and ren or fedgan with what adds to the state: moments of the server, residuals, control
variates, late uploads, counts of outliers.

Prints JSON: the number of kills by phase, and these failures. The exit status is 1 if any is not 0.

hung         jobs that did not end within 10 s
unreported   jobs that ended with status 0
survivors    ranks that were still alive after their job
not_resumed  runs that could not be resumed
different    runs whose parameters, statistics (seconds aside) or grids differ from the
             uninterrupted run
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import common

from fedgan_mpi.testing.kills import (
    LOG,
    kill_in_phase,
    phases_of_job,
    start_recorded_job,
    wait_for_rounds,
)
from fedgan_mpi.testing.runs import differences

ALGORITHMS = ("ren", "fedgan", "mdgan", "uagan", "ensemble", "dp_fedavg_gan", "fegan", "fess_gda")
FLAGS = [
    "--training.rounds=150", "--model.width=4", "--model.nz=8",
    "--evaluation.every=7", "--evaluation.samples=64", "--checkpoint.every=3",
    "--participation.policy=random", "--participation.count=2",
]  # fmt: skip
JOBS = {
    **{name: [f"--algorithm.name={name}"] for name in ALGORITHMS},
    "FedAdam and top-k": [
        "--aggregation.server_optimizer=adam", "--aggregation.server_options.rate=0.01",
        "--aggregation.compression=top_k", "--aggregation.compression_options.share=0.1",
    ],
    "momentum, QSGD and median": [
        "--aggregation.server_options.momentum=0.5", "--aggregation.compression=qsgd",
        "--aggregation.rule=median",
    ],
    "SCAFFOLD": [
        "--algorithm.name=fedgan", "--algorithm.control_variates=true", "--training.optimizer=sgd",
    ],
    "late uploads": ["--wireless.on=true", "--algorithm.staleness=3"],
    "FedDetect": ["--algorithm.name=fedgan", "--aggregation.detector=loss_outliers"],
}  # fmt: skip
JOBS["dp_fedavg_gan"] += ["--algorithm.noise=0.1", "--algorithm.clip=1.0"]
FAILURES = ("hung", "unreported", "survivors", "not_resumed", "different")


def kill_runs(flags: list[str], count: int, stream: random.Random, cwd: Path) -> dict[str, object]:
    """Kill `count` ranks of runs of one job. Return the result of the job."""
    uninterrupted, killed = cwd / "uninterrupted", cwd / "killed"
    for directory in (uninterrupted, killed):
        directory.mkdir()
    job = start_recorded_job(uninterrupted, *flags)
    assert job.wait() == 0, (uninterrupted / LOG).read_text()
    phases = [*phases_of_job(uninterrupted), "start"]
    run = killed / "runs" / "a"
    result, kills_by_phase = Counter[str](), Counter[str]()
    kills, slowest = 0, 0.0
    remaining: list[str] = []
    while True:
        job = start_recorded_job(killed, *flags, "--resume=auto")
        if kills < count:
            start = time.monotonic()
            rank = stream.choice([0, 0, 1, 2])
            if kills % 2:
                remaining = remaining or stream.sample(phases, len(phases))
                kill = kill_in_phase(remaining.pop(), job, killed, rank, timeout=30)
            else:
                wait_for_rounds(job, killed)
                kill = kill_in_phase("any", job, killed, rank, timeout=stream.uniform(0, 3))
            if kill is not None:
                kills += 1
                kills_by_phase[kill.phase] += 1
                slowest = max(slowest, kill.seconds)
                result["hung"] += kill.seconds == float("inf")
                result["unreported"] += kill.status == 0
                result["survivors"] += kill.survivors
                seconds = time.monotonic() - start
                print(f"{kill} {seconds:.0f} s", file=sys.stderr, flush=True)
                continue
        # The job ended before the kill, or there are no more kills.
        if job.wait() != 0:
            result["not_resumed"] += 1
            print((killed / LOG).read_text()[-2000:], file=sys.stderr)
            break
        result["complete"] += 1
        different = differences(run, uninterrupted / "runs" / "a")
        if different:
            result["different"] += 1
            print(f"{run} differs in {', '.join(different)}", file=sys.stderr)
        if kills >= count:
            break
        run.rename(killed / f"complete-{result['complete']}")
    return {
        "kills": kills,
        "by_phase": dict(kills_by_phase.most_common()),
        "slowest_end_s": round(slowest, 2),
        "complete_runs": result["complete"],
        **{failure: result[failure] for failure in FAILURES},
    }


def main() -> None:
    parser = common.make_parser(__doc__)
    parser.add_argument("--kills", type=int, default=20, help="kills per job")
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=JOBS)
    parser.add_argument("--devices", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of phases, ranks and times")
    args = parser.parse_args()
    failures = 0
    for name in args.jobs:
        flags = [*JOBS[name], f"--data.devices={args.devices}", "--run.name=a", *FLAGS]
        stream = random.Random(f"{args.seed} {name}")
        with tempfile.TemporaryDirectory() as cwd:
            result = kill_runs(flags, args.kills, stream, Path(cwd))
        common.print_json({name: result})
        failures += sum(int(str(result[failure])) for failure in FAILURES)
    sys.exit(failures > 0)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()

"""Kills a job at random moments, again and again, until it has ended; then looks for a difference.

    python benchmarks/kills.py [--kills 20] [--algorithms ren fedgan …]

For each algorithm: a run without interruption, and one whose server or a device rank gets SIGKILL
at a moment drawn between its first round and its end, so many times, each followed by `--resume`.
Prints, as JSON, jobs that did not end within 10 s of a kill, jobs that ended well although a rank
was killed, runs that could not go on, and runs that differ: parameters to the bit, stats.jsonl to
the digit (seconds aside), pictures to the pixel.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ALGORITHMS = ("ren", "fedgan", "mdgan", "uagan", "dp_fedavg_gan", "fegan")
ROUNDS = 60
FLAGS = [
    f"--training.rounds={ROUNDS}", "--data.devices=3", "--model.width=4", "--model.nz=8",
    "--evaluation.every=7", "--evaluation.samples=64", "--checkpoint.every=3",
    "--participation.policy=random", "--participation.count=2",
]  # fmt: skip
OF_ALGORITHM = {"dp_fedavg_gan": ["--algorithm.noise=0.1", "--algorithm.clip=1.0"]}


def start(cwd: Path, *arguments: str) -> subprocess.Popen[bytes]:
    command = ["mpirun", "-n", "3", sys.executable, "-m", "fedgan_mpi", *arguments]
    log = open(cwd / "log.txt", "ab")  # noqa: SIM115 - the process's own
    return subprocess.Popen(command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def rank_processes(job: subprocess.Popen[bytes]) -> dict[int, psutil.Process]:
    found = {}
    for process in psutil.Process(job.pid).children(recursive=True):
        environment = process.environ()
        for name in ("PMI_RANK", "OMPI_COMM_WORLD_RANK"):
            if name in environment:
                found[int(environment[name])] = process
    return found


def result(run: Path) -> tuple[object, ...]:
    stats = [
        {key: value for key, value in json.loads(line).items() if not key.startswith("seconds")}
        for line in (run / "stats.jsonl").read_text().splitlines()
    ]
    pictures = {path.name: path.read_bytes() for path in (run / "samples").iterdir()}
    return stats, pictures, (run / "generator.safetensors").read_bytes()


def difference(run: Path, expected: tuple[object, ...]) -> bool:
    """Whether there is one; says where."""
    found = result(run)
    for what, one, other in zip(("stats", "samples", "generator"), found, expected, strict=True):
        if one != other:
            print(f"{run} differs in {what}", file=sys.stderr)
            if what == "stats":
                assert isinstance(one, list) and isinstance(other, list)
                lines = [(a, b) for a, b in zip(one, other, strict=False) if a != b]
                print(len(one), len(other), lines[:1], file=sys.stderr)
    return found != expected


def kill_once(cwd: Path, arguments: list[str], moments: random.Random, seconds: float) -> str:
    """What came of one job: `killed`, `ended`, `hung`, or `no failure`."""
    stats = cwd / "runs" / "a" / "stats.jsonl"
    before = stats.stat().st_mtime if stats.exists() else 0.0
    job = start(cwd, *arguments)
    while job.poll() is None and (not stats.exists() or stats.stat().st_mtime <= before):
        time.sleep(0.002)
    time.sleep(moments.uniform(0, seconds))
    victim = rank_processes(job).get(moments.choice([0, 1, 2])) if job.poll() is None else None
    if victim is None:
        return "ended" if job.wait(60) == 0 else "no failure"
    victim.send_signal(signal.SIGKILL)
    try:
        status = job.wait(10)
    except subprocess.TimeoutExpired:
        for process in rank_processes(job).values():
            process.kill()
        job.wait(30)
        return "hung"
    return "killed" if status != 0 else "no failure"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--algorithms", nargs="+", default=ALGORITHMS)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    moments = random.Random(asked.seed)
    table = {}
    for name in asked.algorithms:
        flags = [f"--algorithm.name={name}", *OF_ALGORITHM.get(name, []), *FLAGS, "--run.name=a"]
        with tempfile.TemporaryDirectory() as plain, tempfile.TemporaryDirectory() as torn:
            whole = Path(plain)
            assert start(whole, *flags).wait() == 0, (whole / "log.txt").read_text()
            expected = result(whole / "runs" / "a")
            row = {"killed": 0, "hung": 0, "no failure": 0, "ended": 0, "lost": 0, "different": 0}
            cwd = Path(torn)
            while row["killed"] + row["hung"] < asked.kills:
                run = cwd / "runs" / "a"
                # A run that has ended begins anew; another is resumed.
                row[kill_once(cwd, [*flags, "--resume=auto"], moments, 2.0)] += 1
                if not (run / "generator.safetensors").exists():
                    continue
                row["different"] += difference(run, expected)
                run.rename(cwd / f"done-{row['killed']}-{row['ended']}-{time.monotonic_ns()}")
            if (cwd / "runs" / "a").exists():
                if start(cwd, *flags, "--resume=auto").wait() != 0:
                    row["lost"] += 1
                else:
                    row["different"] += difference(cwd / "runs" / "a", expected)
            table[name] = row
            print(json.dumps({name: row}), flush=True)
    hurt = sum(row[key] for row in table.values() for key in ("hung", "no failure", "lost"))
    different = sum(row["different"] for row in table.values())
    sys.exit(bool(hurt or different))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()

"""Kills a job in each of its phases, again and again, until it has ended; then looks for a
difference.

    python benchmarks/kills.py [--kills 20] [--algorithms ren fedgan …] [--devices 3]

For each algorithm: a run without interruption, and runs whose server or a device rank gets SIGKILL,
so many times in all, each followed by `--resume`. Every second kill is aimed: its rank dies the
next time that it is in a phase drawn from those that the run without interruption went through.
The others fall at random moments of its rounds. The rank is stopped first and its board read
(tests/phases.py), so that the table says where each kill fell. Ranks are three; with two devices
they share cores and copy their states into shared memory, and the server alone writes.

Prints, as JSON: kills by phase; `hung`, jobs that did not end within 10 s; `unnoticed`, those that
ended with 0; `left`, ranks that outlived their job; `lost`, runs that could not go on; `different`,
those whose parameters differ by a bit, stats.jsonl by a digit (seconds aside) or pictures by a
pixel. Exits with 1 where any is not 0.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from phases import kill_in, phases_seen, start, wait_for_rounds

ALGORITHMS = ("ren", "fedgan", "mdgan", "uagan", "dp_fedavg_gan", "fegan")
FLAGS = [
    "--training.rounds=150", "--model.width=4", "--model.nz=8",
    "--evaluation.every=7", "--evaluation.samples=64", "--checkpoint.every=3",
    "--participation.policy=random", "--participation.count=2",
]  # fmt: skip
OF_ALGORITHM = {"dp_fedavg_gan": ["--algorithm.noise=0.1", "--algorithm.clip=1.0"]}
FAILURES = ("hung", "unnoticed", "left", "lost", "different")
RANKS = 3


def result(run: Path) -> dict[str, object]:
    stats = [
        {key: value for key, value in json.loads(line).items() if not key.startswith("seconds")}
        for line in (run / "stats.jsonl").read_text().splitlines()
    ]
    pictures = {path.name: path.read_bytes() for path in (run / "samples").iterdir()}
    return {
        "stats": stats,
        "samples": pictures,
        "generator": (run / "generator.safetensors").read_bytes(),
    }


def differs(run: Path, expected: dict[str, object]) -> bool:
    """Whether there is a difference; says where."""
    found = result(run)
    where = [what for what in expected if found[what] != expected[what]]
    if where:
        print(f"{run} differs in {', '.join(where)}", file=sys.stderr)
    return bool(where)


def kills(flags: list[str], count: int, moments: random.Random, cwd: Path) -> dict[str, object]:
    """A table's row."""
    whole, torn = cwd / "whole", cwd / "torn"
    for place in (whole, torn):
        place.mkdir()
    assert start(whole, *flags).wait() == 0, (whole / "log.txt").read_text()
    expected, phases = result(whole / "runs" / "a"), [*phases_seen(whole), "start"]
    run, row, done, slowest = torn / "runs" / "a", Counter[str](), 0, 0.0
    fell = Counter[str]()
    aims: list[str] = []
    while True:
        # Once there were kills enough, the last run goes on to its end.
        job = start(torn, *flags, "--resume=auto")
        if done < count:
            began = time.monotonic()
            rank = moments.choice([0, 0, 1, 2])
            if done % 2:
                aims = aims or moments.sample(phases, len(phases))
                kill = kill_in(aims.pop(), job, torn, rank, patience=30)
            else:
                wait_for_rounds(job, torn)
                kill = kill_in("any", job, torn, rank, patience=moments.uniform(0, 3))
            if kill is not None:
                done += 1
                fell[kill.phase] += 1
                slowest = max(slowest, kill.seconds)
                row["hung"] += kill.seconds == float("inf")
                row["unnoticed"] += kill.status == 0
                row["left"] += kill.left
                print(f"{kill} {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
                continue
        ended = job.wait()
        if ended != 0:
            row["lost"] += 1
            print((torn / "log.txt").read_text()[-2000:], file=sys.stderr)
            break
        row["ended"] += 1
        row["different"] += differs(run, expected)
        if done >= count:
            break
        run.rename(torn / f"ended-{row['ended']}")  # and a new one begins
    return {
        "kills": done,
        "fell in": dict(fell.most_common()),
        "slowest end, s": round(slowest, 2),
        "whole runs": row["ended"],
        **{failure: row[failure] for failure in FAILURES},
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--algorithms", nargs="+", default=ALGORITHMS)
    parser.add_argument("--devices", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    failures = 0
    for name in asked.algorithms:
        job = [f"--algorithm.name={name}", f"--data.devices={asked.devices}", "--run.name=a"]
        flags = [*job, *OF_ALGORITHM.get(name, []), *FLAGS]
        moments = random.Random(f"{asked.seed} {name}")
        with tempfile.TemporaryDirectory() as cwd:
            row = kills(flags, asked.kills, moments, Path(cwd))
        print(json.dumps({name: row}), flush=True)
        failures += sum(int(str(row[failure])) for failure in FAILURES)
    sys.exit(failures > 0)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()

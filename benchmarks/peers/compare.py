"""Compares FedGAN in fedgan_mpi, Flower, FedML and bare torch.distributed on one machine.

    python benchmarks/peers/compare.py --out peers rounds
    python benchmarks/peers/compare.py --out peers memory
    python benchmarks/peers/compare.py --out peers scores --mnist DIR
    python benchmarks/peers/tables.py peers                     # tables and docs/images/peers.png

The first call makes a virtual environment for each peer in OUT. All contenders have the same
shards, networks, initial parameters and local steps. Their jobs alternate in blocks. Each result is
a line of OUT/results.jsonl, and a call that is repeated measures what is missing.

rounds    rounds without steps and with steps, and the start
memory    largest memory of all processes
scores    seconds and processor seconds to a score
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import environments
import numpy as np
import processes

WARM_UP = 2  # rounds that are not measured
CONTENDERS = ("ours", "floor", "flower", "fedml")
PAIRS: dict[str, dict[str, Any]] = {
    "16px": {"model": {"nz": 100, "width": 32}, "batch": 32, "steps": 1},
    "64px": {"model": {"nz": 100, "width": 64}, "batch": 16, "steps": 1},
}
ROUNDS = {
    "16px": {
        "ours": (400, 60),
        "link": (400, 0),
        "floor": (400, 60),
        "flower": (20, 20),
        "fedml": (40, 30),
        "steps": (0, 60),
    },
    "64px": {
        "ours": (50, 5),
        "link": (50, 0),
        "floor": (50, 5),
        "flower": (14, 5),
        "fedml": (14, 5),
        "steps": (0, 8),
    },
}
"""Pair -> contender -> rounds without and with steps."""
FEDGAN = {"name": "fedgan", "moments": "reset"}  # as in the peers, whose optimizers are new
SCORED: dict[str, dict[str, Any]] = {
    "digits": {"model": {"nz": 100, "width": 32}, "rounds": 80, "export_every": 5},
    "mnist": {"model": {"nz": 100, "width": 16}, "rounds": 80, "export_every": 5},
}
SCORED_JOB: dict[str, Any] = {"silent_rounds": 0, "steps": 5, "batch": 32, "lr": 5e-4, "devices": 4}
REN = {
    "ren serial": {"name": "ren"},
    "ren parallel": {"name": "ren", "schedule": "parallel"},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--flower", default=environments.FLOWER, help="version")
    parser.add_argument("--fedml", default=environments.FEDML, help="version")
    commands = parser.add_subparsers(dest="command", required=True)
    rounds = commands.add_parser("rounds")
    rounds.add_argument("--blocks", type=int, default=5)
    rounds.add_argument("--devices", type=int, nargs="+", default=[4, 8])
    rounds.add_argument("--pairs", nargs="+", choices=list(PAIRS), default=list(PAIRS))
    commands.add_parser("memory")
    scores = commands.add_parser("scores")
    scores.add_argument("--mnist", type=Path, help="directory of MNIST; without it, digits only")
    scores.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    out: Path = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    environments.prepare(out / "environments", args.flower, args.fedml)
    cases = {"rounds": round_cases, "memory": memory_cases, "scores": score_cases}[args.command]
    results = Results(out / "results.jsonl", {"flower": args.flower, "fedml": args.fedml})
    for case in cases(args):
        if not results.has(case):
            results.add(case, run_case(case, out))


class Results:
    """The lines of results.jsonl."""

    def __init__(self, path: Path, versions: Mapping[str, str]) -> None:
        self._path, self._versions = path, versions
        lines = path.read_text().splitlines() if path.exists() else []
        self._cases = [json.loads(line)["case"] for line in lines]

    def has(self, case: Mapping[str, Any]) -> bool:
        return dict(case) in self._cases

    def add(self, case: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        load = round(os.getloadavg()[0], 2)
        line = {"case": case, "result": result, "versions": self._versions, "load": load}
        with open(self._path, "a") as file:
            print(json.dumps(line), file=file)
        print(json.dumps(line), flush=True)


def round_cases(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the cases of `rounds`: whole blocks, in which the contenders alternate."""
    cores = len(os.sched_getaffinity(0))
    for block in range(args.blocks):
        for devices in args.devices:
            for pair in args.pairs:
                case = {"kind": "rounds", "pair": pair, "devices": devices, "block": block}
                for who in (*CONTENDERS, "link"):
                    yield {**case, "who": who}
                yield {**case, "who": "steps", "devices": cores}


def memory_cases(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the cases of `memory`, one job each: a sample of memory disturbs the rounds."""
    for pair in PAIRS:
        for who in CONTENDERS:
            yield {"kind": "memory", "pair": pair, "devices": 4, "who": who}


def score_cases(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the cases of `scores`, seed by seed."""
    for seed in range(args.seeds):
        for data in SCORED if args.mnist else ("digits",):
            source = str(args.mnist.resolve()) if data == "mnist" else None
            for who in (*CONTENDERS, *REN):
                yield {"kind": "scores", "data": data, "seed": seed, "who": who, "source": source}


def run_case(case: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Run one job and return its result."""
    directory = out / "job"
    shutil.rmtree(directory, ignore_errors=True)
    if case["kind"] == "scores":
        return run_scores(case, out, directory)
    pair, who, devices = case["pair"], case["who"], case["devices"]
    silent, steps = ROUNDS[pair][who]
    if case["kind"] == "memory":
        silent, steps = 0, 8  # one run of fedgan_mpi, as other programs have one
    data = "digits" if pair == "16px" else "noise"
    job = {
        **PAIRS[pair],
        "shards": str(shards(out, data, devices)),
        "devices": devices,
        "silent_rounds": silent,
        "rounds": silent + steps,
        "seed": 0,
        "lr": 2e-4,
        "algorithm": FEDGAN,
        "export_every": 0,
        "samples": None,
    }
    command = environments.command(who, devices, out / "environments", directory)
    seen = processes.run(command, job, directory, timeout=900, memory=case["kind"] == "memory")
    if case["kind"] == "memory":
        return {"peak_mib": round(seen.peak_mib, 1)}
    return {
        "first_round_seconds": round(seen.ends[0] - seen.begin, 3),
        "silent": stage(seen, 0, silent),
        "steps": stage(seen, silent, silent + steps),
        "bytes_down": seen.bytes_down,
        "bytes_up": seen.bytes_up,
    }


def stage(seen: processes.Observation, first: int, last: int) -> dict[str, float] | None:
    """Return seconds and processor seconds per round of some rounds, without the first ones."""
    ends = seen.ends[first + WARM_UP - 1 : last]
    if len(ends) < 2:
        return None
    rounds = len(ends) - 1
    return {
        "seconds": (ends[-1] - ends[0]) / rounds,
        "median_seconds": float(np.median(np.diff(ends))),
        "cpu_seconds": (seen.cpu_at(ends[-1]) - seen.cpu_at(ends[0])) / rounds,
    }


def run_scores(case: Mapping[str, Any], out: Path, directory: Path) -> dict[str, Any]:
    """Train and score the exported generators afterwards, which takes no time of the job."""
    who = "ours" if case["who"] in REN else case["who"]
    data = shards(out, case["data"], SCORED_JOB["devices"], case["source"])
    job = {
        **SCORED_JOB,
        **SCORED[case["data"]],
        "shards": str(data),
        "seed": case["seed"],
        "algorithm": REN.get(case["who"], FEDGAN),
        "samples": 300 if case["data"] == "digits" else 2000,
    }
    devices = SCORED_JOB["devices"]
    command = environments.command(who, devices, out / "environments", directory)
    seen = processes.run(command, job, directory, timeout=1800, memory=False)
    scorer = Path(__file__).with_name("score_exports.py")
    done = subprocess.run(
        [sys.executable, str(scorer), str(directory), str(data), str(job["samples"])],
        check=True,
        capture_output=True,
        text=True,
    )
    scores = json.loads(done.stdout.splitlines()[-1])
    curve = [
        [round, seen.ends[round - 1] - seen.begin, seen.cpu_at(seen.ends[round - 1]), score]
        for round, score in scores
    ]
    return {"curve": curve, "first_round_seconds": seen.ends[0] - seen.begin}


def shards(out: Path, data: str, devices: int, source: str | None = None) -> Path:
    """Return a directory of shards, which is written first if it does not exist."""
    directory = out / f"{data}_{devices}"
    if directory.exists():
        return directory
    flags = ["--devices", str(devices), "--out", str(directory)]
    if data == "noise":
        stream = np.random.default_rng(0)
        pixels = stream.integers(0, 256, (640, 64, 64, 3), dtype=np.uint8)
        np.savez(out / "noise.npz", train_images=pixels, train_labels=np.arange(640) % 10)
        flags += ["--source", str(out / "noise.npz"), "--heldout-share", "0", "--features", "none"]
    elif data == "mnist":
        flags += ["--source", str(source)]
    name = "npz" if data == "noise" else data
    subprocess.run([sys.executable, "-m", "data_prep", name, *flags], check=True)
    return directory


if __name__ == "__main__":
    main()

"""Observes a long job with scores and checkpoints: memory, open files, threads and /dev/shm.

    python benchmarks/soak.py [--rounds 5000] [--ranks 3] [--out soak]

Writes OUT/soak.csv, one line per rank and sample, and its curve OUT/soak.png. Prints JSON: the
growth of each quantity, and the files that remain in /dev/shm. Growth is the difference of medians
between the second and the last quarter of the samples, on the rank that grew most. The first
quarter, in which buffers are created, does not count.

The exit status is 1 if the job fails or a file remains in /dev/shm. It is also 1 if a rank grows by
more than --limit MiB, by a descriptor or by a thread.
"""

from __future__ import annotations

import csv
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import common
import psutil

from fedgan_mpi.run.figures import new_figure, write_figure
from fedgan_mpi.testing.jobs import ENVIRONMENT, MPIRUN, PROGRAM, rank_processes

SHARED = Path("/dev/shm")
LOG = "job.log"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One rank at one time."""

    round: int
    seconds: float
    rank: int
    memory_mib: float
    """Memory of this process alone, without the pages that ranks share."""
    descriptors: int
    threads: int
    shared_mib: float
    """Space used in /dev/shm by all programs of the machine."""


QUANTITIES = ("memory_mib", "descriptors", "threads", "shared_mib")


def flags_of(rounds: int, ranks: int) -> list[str]:
    return [
        "--run.directory=runs", "--run.name=soak", f"--training.rounds={rounds}",
        f"--data.devices={max(ranks - 1, 2)}", "--model.width=4", "--model.nz=8",
        "--evaluation.every=20", "--evaluation.samples=64", "--checkpoint.every=10",
    ]  # fmt: skip


def completed_round(stats: Path) -> int:
    """Return the round in the last line of stats.jsonl that is complete; 0 if there is none."""
    if not stats.exists():
        return 0
    with stats.open("rb") as file:
        file.seek(max(0, stats.stat().st_size - 8192))
        lines = file.read().split(b'"round": ')
    return int(lines[-1].split(b",")[0]) if len(lines) > 1 else 0


def take_samples(ranks: Sequence[psutil.Process], round: int, seconds: float) -> list[Sample]:
    """Return a sample of each rank. Raises psutil.Error if one has ended."""
    space = os.statvfs(SHARED)
    used = (space.f_blocks - space.f_bfree) * space.f_frsize / 2**20
    return [
        Sample(
            round=round,
            seconds=round_to(seconds),
            rank=rank,
            memory_mib=round_to(process.memory_full_info().uss / 2**20),
            descriptors=process.num_fds(),
            threads=process.num_threads(),
            shared_mib=round_to(used),
        )
        for rank, process in enumerate(ranks)
    ]


def round_to(number: float) -> float:
    return float(f"{number:.2f}")


def observe(job: subprocess.Popen[str], stats: Path, rounds: int, pause: float) -> list[Sample]:
    """Sample the ranks of a job after each pause in which it has finished a round."""
    samples: list[Sample] = []
    began, ranks, before = time.monotonic(), list[psutil.Process](), 0
    while job.poll() is None:
        time.sleep(pause)
        now = completed_round(stats)
        if not before < now < rounds:  # it starts, waits, or draws its report
            continue
        before = now
        try:
            ranks = ranks or [psutil.Process(pid) for pid in rank_processes(job)]
            samples += take_samples(ranks, now, time.monotonic() - began)
        except psutil.Error:
            break
    job.wait()
    return samples


def growth(samples: Sequence[Sample], quantity: str) -> float:
    """Return the difference of medians between second and last quarter, of the rank that grew
    most."""
    grown = []
    for rank in {sample.rank for sample in samples}:
        values = [getattr(sample, quantity) for sample in samples if sample.rank == rank]
        quarter = max(1, len(values) // 4)
        second, last = values[quarter : 2 * quarter] or values[:1], values[-quarter:]
        grown.append(statistics.median(last) - statistics.median(second))
    return round_to(max(grown))


def write_csv(path: Path, samples: Sequence[Sample]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Sample)])
        writer.writeheader()
        writer.writerows(map(asdict, samples))


def draw(path: Path, samples: Sequence[Sample]) -> None:
    """Draw a panel per quantity against rounds, with a line per rank."""
    figure = new_figure(3.4 * len(QUANTITIES), 3.2)
    titles = ("memory, MiB", "open descriptors", "threads", "used in /dev/shm, MiB")
    panels = figure.subplots(1, len(QUANTITIES))
    for axes, quantity, title in zip(panels, QUANTITIES, titles, strict=True):
        for rank in sorted({sample.rank for sample in samples}):
            own = [sample for sample in samples if sample.rank == rank]
            name = "server" if rank == 0 else f"rank {rank}"
            values = [getattr(sample, quantity) for sample in own]
            axes.plot([sample.round for sample in own], values, linewidth=1, label=name)
        axes.set(title=title, xlabel="rounds", ylim=(0, None))
        axes.grid(alpha=0.25, linewidth=0.5)
    panels[0].legend(frameon=False)
    write_figure(figure, path)


def main() -> None:
    parser = common.make_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5000)
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("soak"), help="a new directory")
    parser.add_argument("--pause", type=float, default=1.0, help="seconds between samples")
    parser.add_argument("--limit", type=float, default=4.0, help="MiB that a rank may grow by")
    parser.add_argument("flags", nargs="*", help="more flags of the job, after --")
    args = parser.parse_args()
    args.out.mkdir(parents=True)
    before = set(os.listdir(SHARED))
    flags = [*flags_of(args.rounds, args.ranks), *args.flags]
    command = [MPIRUN, "-n", str(args.ranks), sys.executable, *PROGRAM, *flags]
    with (args.out / LOG).open("w") as log:
        job = subprocess.Popen(
            command, cwd=args.out, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=log,
            stderr=log, text=True,
        )  # fmt: skip
        stats = args.out / "runs" / "soak" / "stats.jsonl"
        samples = observe(job, stats, args.rounds, args.pause)
    if len(samples) < 8 * args.ranks:
        sys.exit(f"too few samples; see {args.out / LOG}, or try more rounds or a shorter --pause")
    write_csv(args.out / "soak.csv", samples)
    draw(args.out / "soak.png", samples)
    grown = {quantity: growth(samples, quantity) for quantity in QUANTITIES}
    left = sorted(set(os.listdir(SHARED)) - before)
    result = {
        "benchmark": "soak", "rounds": args.rounds, "ranks": args.ranks, "status": job.returncode,
        "samples": len(samples) // args.ranks, "growth": grown, "left_in_shm": left,
    }  # fmt: skip
    common.print_json(result)
    fixed = grown["memory_mib"] <= args.limit and grown["descriptors"] <= 0 >= grown["threads"]
    sys.exit(job.returncode != 0 or not fixed or any("fedgan" in name for name in left))


if __name__ == "__main__":
    main()

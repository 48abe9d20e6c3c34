"""The steps of accept_gpu.sh that run whole jobs."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import time
from collections.abc import Sequence

from accept_commands import OUT, Result, any_mpi, nvidia_smi, open_mpi, output_of

from fedgan_mpi.testing.jobs import SMALL
from fedgan_mpi.testing.runs import losses

DEVICE = os.environ.get("ACCEPT_DEVICE", "cuda")
"""`cpu` rehearses the jobs without a GPU."""
EXACT = (
    *("--training.device", DEVICE, "--training.precision", "float64", "--training.graphs", "off"),
    *("--training.tf32", "false", "--link.wire_dtype", "float64", "--data.devices", "4"),
)
"""Flags of jobs whose losses depend on the processor by rounding in float64 only."""


def no_cuda() -> Result:
    """Step 5: an Open MPI whose CUDA support is switched off gets no address in GPU memory."""
    mpi = open_mpi()
    mpi.environment["OMPI_MCA_opal_cuda_support"] = "0"
    job = mpi.job("no-cuda", 3, *SMALL, *EXACT, "--link.route", "auto", "--training.rounds", "3")
    status, output = job.wait(), output_of("no-cuda")
    by_host = DEVICE == "cpu" or ("pinned host memory, " in output and ": GPU memory" not in output)
    route = "host route" if by_host else "not the host route"
    return Result(status == 0 and by_host, f"exit status {status}, {route}", "0, host route")


def resume() -> Result:
    """Step 6: a job that a signal stopped and a second one continued, against one job."""
    mpi = any_mpi()
    flags = (*SMALL, *EXACT, "--training.rounds", "40", "--checkpoint.every", "10")
    jobs = {name: mpi.job(name, 5, *flags) for name in ("whole", "stopped")}
    while jobs["stopped"].poll() is None and len(rounds_of("stopped")) < 15:
        time.sleep(0.02)
    jobs["stopped"].send_signal(signal.SIGUSR1)
    statuses = [jobs["stopped"].wait()]
    statuses.append(mpi.job("stopped", 5, *flags, "--resume", "auto").wait())
    statuses.append(jobs["whole"].wait())
    difference = largest_difference(rounds_of("whole"), rounds_of("stopped"), rounds=40)
    says = DEVICE == "cpu" or says_gpu_and_route("whole")
    number = f"exit {statuses}, losses differ by {difference:.1e}"
    number += "" if says else ", GPU or route is not told"
    passed = statuses == [75, 0, 0] and difference <= 1e-8 and says
    return Result(passed, number, "[75, 0, 0], 1e-8, GPU and route told")


def cpu() -> Result:
    """Step 7: the losses of the first rounds of step 6, computed on the CPU."""
    flags = (*SMALL, *EXACT, "--training.device", "cpu", "--training.rounds", "10")
    status = any_mpi().job("cpu", 5, *flags).wait()
    difference = largest_difference(rounds_of("whole"), rounds_of("cpu"), rounds=10)
    number = f"exit {status}, losses differ by {difference:.1e}"
    return Result(status == 0 and difference <= 1e-6, number, "0, 1e-6")


def pixels_64() -> Result:
    """Step 8: algorithms and number formats at 64 pixels, in four jobs at once."""
    mpi, flags = any_mpi(), ("--model.size", "64", "--training.rounds", "5", "--data.devices", "2")
    variants: dict[str, tuple[str, ...]] = {
        name: ("--algorithm.name", name) for name in ("mdgan", "uagan", "fedgan")
    }
    bfloat16 = ("--training.autocast", "bfloat16", "--training.memory_format", "channels_last")
    variants["resnet"] = ("--model.architecture", "resnet", *bfloat16)
    width = ("--model.width", "16", "--evaluation.every", "0", "--training.device", DEVICE)
    jobs = {name: mpi.job(name, 3, *flags, *width, *more) for name, more in variants.items()}
    statuses = {name: job.wait() for name, job in jobs.items()}
    finite = {
        name: len(found) == 5 and all(math.isfinite(loss) for _, *both in found for loss in both)
        for name in variants
        for found in [rounds_of(name)]
    }
    bad = [name for name in variants if statuses[name] != 0 or not finite[name]]
    return Result(not bad, f"wrong: {', '.join(bad) or 'none'}", "exit 0, finite losses")


def rounds_of(run: str) -> list[tuple[int, float, float]]:
    """Return (round, D's loss, G's loss) of each completed round; none before the first."""
    try:
        return losses(OUT / "runs" / run)
    except (OSError, json.JSONDecodeError):  # no file yet, or a line that is being written
        return []


def largest_difference(
    one: Sequence[tuple[int, float, float]],
    other: Sequence[tuple[int, float, float]],
    *,
    rounds: int,
) -> float:
    """Return the largest relative difference of two runs' losses; infinity if a round lacks."""
    one, other = one[:rounds], other[:rounds]
    numbers = list(range(1, rounds + 1))
    if not [n for n, *_ in one] == [n for n, *_ in other] == numbers:
        return math.inf
    pairs = [(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True)]
    if not all(math.isfinite(number) for pair in pairs for number in pair):
        return math.inf
    return max(abs(a - b) / max(abs(a), abs(b), 1e-300) for a, b in pairs)


def says_gpu_and_route(run: str) -> bool:
    """Whether the record or the log of a run names the GPU and the route."""
    text = output_of(run) + (OUT / "runs" / run / "config.toml").read_text()
    names = nvidia_smi("name")
    return any(name in text for name in names) and re.search(r"(GPU|host) memory", text) is not None

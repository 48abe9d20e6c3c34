"""Launches whole MPI jobs as a user does, and finds the processes of their ranks.

Knows the launcher and the environment of a job. Knows nothing about run directories.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from fedgan_mpi.testing import forked_ranks

MPIRUN = shutil.which("mpirun", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}") or ""
"""Path of the launcher: the one beside this Python first. Empty if none is installed."""

# Each rank sets its own number of threads.
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
PROGRAM = ("-m", "fedgan_mpi")
SMALL_NETWORKS = ("--model.width", "4", "--model.nz", "8")
SMALL = (*SMALL_NETWORKS, "--evaluation.every", "0")
"""Flags of the fastest job: small networks and no scores."""


def run_job(
    ranks: int,
    *arguments: str,
    cwd: Path,
    program: Sequence[str] = PROGRAM,
    forked: bool = True,
    timeout: float = 200,
) -> subprocess.CompletedProcess[str]:
    """Run `mpirun -n RANKS python PROGRAM ARGUMENTS` in `cwd` and return its status and output.

    forked: fork ranks from a process that has imported torch. Slower for jobs that end before
    they import it.
    timeout: seconds. Raises subprocess.TimeoutExpired.
    """
    python = forked_python() if forked else [sys.executable]
    command = [MPIRUN, "-n", str(ranks), *python, *program, *arguments]
    return subprocess.run(
        command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=timeout
    )


def start_job(
    ranks: int, *arguments: str, cwd: Path, program: Sequence[str] = PROGRAM
) -> subprocess.Popen[str]:
    """Start a job in `cwd` and return at once. Its output goes through pipes."""
    return subprocess.Popen(
        [MPIRUN, "-n", str(ranks), sys.executable, *program, *arguments],
        cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def forked_python() -> list[str]:
    """Return a command that replaces `python` in a job and skips the import of torch.

    The first call starts a process that imports torch and forks the ranks. It serves all later
    jobs and ends with this process.
    """
    return [sys.executable, "-S", forked_ranks.__file__, _fork_server()[0]]


@functools.cache
def _fork_server() -> tuple[str, subprocess.Popen[bytes]]:
    """Start the fork server. Return its address and its process."""
    address = f"fedgan-mpi-tests-{os.getpid()}"
    process = subprocess.Popen(
        [sys.executable, forked_ranks.__file__, address],
        env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return address, process


def rank_processes(job: subprocess.Popen[str]) -> list[int]:
    """Return the process ids of ranks 0, 1, … of a job on this machine. Needs psutil."""
    import psutil

    found = {}
    for process in psutil.Process(job.pid).children(recursive=True):
        environment = process.environ()
        for name in ("PMI_RANK", "OMPI_COMM_WORLD_RANK"):
            if name in environment:
                found[int(environment[name])] = process.pid
    return [found[rank] for rank in sorted(found)]

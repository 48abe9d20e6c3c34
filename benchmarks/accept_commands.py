"""Commands of the steps of accept_gpu.sh: jobs and programs of an MPI library, and their logs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from fedgan_mpi.testing.jobs import MPIRUN

OUT = Path(os.environ.get("OUT", "accept_gpu")).resolve()
ROOT = Path(__file__).parents[1]
PYTHON = [sys.executable]


class Skip(Exception):
    """This machine cannot run a step; the reason in words."""


class Result(NamedTuple):
    """What a step found."""

    passed: bool
    number: str
    limit: str = ""


def start(
    log: str, command: Sequence[str], environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a command in $OUT, or in the checkout if it is pytest. Its output goes to the log."""
    with (OUT / f"{log}.log").open("w") as output:
        return subprocess.Popen(
            command,
            cwd=ROOT if "pytest" in command else OUT,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def output_of(log: str) -> str:
    return (OUT / f"{log}.log").read_text(errors="replace")


class Mpi(NamedTuple):
    """An MPI library: its launcher, and the environment of its jobs."""

    mpirun: str
    environment: dict[str, str]

    def ranks(self, count: int) -> list[str]:
        """Return the start of a command that runs Python on several ranks."""
        return [self.mpirun, "-n", str(count), *PYTHON]

    def job(self, name: str, ranks: int, *flags: str) -> subprocess.Popen[bytes]:
        """Start a job that trains into $OUT/runs/NAME."""
        program = ("-m", "fedgan_mpi", "train", *flags, "--run.name", name)
        return start(name, [*self.ranks(ranks), *program], self.environment)


def any_mpi() -> Mpi:
    """Return MPICH: the one that the environment names, or the MPI beside Python."""
    return find_mpi(os.environ.get("MPICH"), "libmpi.so.12")


def open_mpi() -> Mpi:
    if not os.environ.get("OPENMPI"):
        raise Skip("OPENMPI does not name a CUDA-aware Open MPI")
    return find_mpi(os.environ["OPENMPI"], "libmpi.so.40")


def find_mpi(prefix: str | None, library: str) -> Mpi:
    """Return the MPI library under a prefix, or the one whose mpirun is beside Python."""
    modes = [mode for mode in nvidia_smi("compute_mode") if mode != "Default"]
    if modes:
        raise Skip(f"several ranks cannot share a GPU in compute mode {modes[0]}")
    environment = {
        "MPI_TEST_TIMEOUT": "30",  # the first use of CUDA may take longer than the default
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    }
    if not prefix:
        if not MPIRUN:
            raise Skip("mpirun is not installed")
        return Mpi(MPIRUN, environment)
    environment["OPAL_PREFIX"] = prefix
    environment["LD_LIBRARY_PATH"] = f"{prefix}/lib:{os.environ.get('LD_LIBRARY_PATH', '')}"
    environment["MPI4PY_LIBMPI"] = f"{prefix}/lib/{library}"
    return Mpi(f"{prefix}/bin/mpirun", environment)


def nvidia_smi(query: str) -> list[str]:
    """Return a line for each GPU; none if the program is missing or fails."""
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except OSError:
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []

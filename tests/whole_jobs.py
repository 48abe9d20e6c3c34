"""Whole jobs as a user starts them, for tests of all kinds, and what they leave behind."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import forked_ranks
import pytest

MPIRUN = shutil.which("mpirun", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
if MPIRUN is None:
    pytest.skip("no mpirun", allow_module_level=True)

# A rank in a job sets its own threads; those of the test's process are not for it.
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
SMALL = ["--model.width", "4", "--model.nz", "8", "--evaluation.every", "0"]


def run(
    ranks: int,
    *arguments: str,
    cwd: Path,
    program: tuple[str, ...] = ("-m", "fedgan_mpi"),
    forked: bool = True,
) -> subprocess.CompletedProcess[str]:
    """forked: whether ranks need not import torch; where they do not do so, they begin faster
    without."""
    python = forked_python() if forked else [sys.executable]
    command = [MPIRUN, "-n", str(ranks), *python, *program, *arguments]
    return subprocess.run(
        command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=200
    )


def forked_python() -> list[str]:
    """What stands for `python` in a job whose ranks need not import torch, since they are forks of
    a process that has. Those of later jobs, too: it lives as long as this one does."""
    return [sys.executable, "-S", forked_ranks.__file__, _forks()[0]]


@functools.cache
def _forks() -> tuple[str, subprocess.Popen[bytes]]:
    """Where forks are made, and the process that makes them."""
    address = f"fedgan-mpi-tests-{os.getpid()}"
    process = subprocess.Popen(
        [sys.executable, forked_ranks.__file__, address],
        env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return address, process


def lines(run_directory: Path) -> list[dict]:
    return [json.loads(line) for line in (run_directory / "stats.jsonl").read_text().splitlines()]


def lines_but_for_time(run_directory: Path) -> list[dict]:
    """Without measured seconds."""
    return [
        {key: value for key, value in line.items() if not key.startswith("seconds")}
        for line in lines(run_directory)
    ]


def rounds_told(run_directory: Path) -> int:
    """How many a job has told of, which may be in the middle of a line."""
    path = run_directory / "stats.jsonl"
    whole, _, _ = (path.read_text() if path.exists() else "").rpartition("\n")
    return sum('"participants"' in line for line in whole.splitlines())


def losses(run_directory: Path) -> list[tuple]:
    return [
        (line["round"], line["d_loss"], line["g_loss"])
        for line in lines(run_directory)
        if "d_loss" in line
    ]


def generator(run_directory: Path) -> bytes:
    return (run_directory / "generator.safetensors").read_bytes()


def copy_without_last_checkpoint(whole: Path, cut: Path) -> None:
    """A finished run under another path, as if it had been killed before that."""
    shutil.copytree(whole, cut)
    shutil.rmtree(max((cut / "checkpoints").glob("round_*")))
    config = cut / "config.toml"
    text = config.read_text()
    config.write_text(text.replace(f'name = "{whole.name}"', f'name = "{cut.name}"'))

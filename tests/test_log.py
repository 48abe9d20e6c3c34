"""Log messages: rank and host, files per rank, levels."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import logging, sys, warnings
from fedgan_mpi import log

rank, *options = sys.argv[1:]
log.start(int(rank), *options)
logging.getLogger("fedgan_mpi.comm.link").debug("a detail")
logging.getLogger("fedgan_mpi.training.loop").info("a message")
logging.getLogger("fedgan_mpi.faults").error("%d errors", 2)
warnings.warn("a warning of Python")
"""


def run(program: str, *arguments: str) -> list[str]:
    """Run a program in a new process and return the lines of its standard error."""
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    return [line for line in done.stderr.splitlines() if line]


@pytest.mark.parametrize("rank", ["0", "12"])
def test_messages_and_warnings_begin_with_rank_and_host(rank):
    prefix = f"[rank {rank} on {platform.node()}] "
    lines = run(PROGRAM, rank)
    assert all(line.startswith(prefix) for line in lines)
    message, errors, warning = (line.removeprefix(prefix) for line in lines)
    assert (message, errors) == ("a message", "2 errors")
    assert warning.endswith("UserWarning: a warning of Python")


@pytest.mark.parametrize(
    ("level", "count"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)]
)
def test_less_severe_messages_are_not_logged(level, count):
    assert len(run(PROGRAM, "0", level)) == count


def test_each_rank_writes_its_own_file(tmp_path):
    directory = tmp_path / "logs" / "run"
    for rank in ("0", "12"):
        run(PROGRAM, rank, "info", str(directory))
    assert sorted(path.name for path in directory.iterdir()) == ["rank_0000.log", "rank_0012.log"]
    for rank in (0, 12):
        lines = (directory / f"rank_{rank:04d}.log").read_text().splitlines()
        where = f"[rank {rank} on {platform.node()}]"
        assert f"{where} INFO fedgan_mpi.training.loop: a message" in lines[0]
        assert f"{where} ERROR fedgan_mpi.faults: 2 errors" in lines[1]
        assert f"{where} WARNING py.warnings: " in lines[2]
        assert "a warning of Python" in lines[2] and "a detail" not in "".join(lines)


SECOND_START = PROGRAM.replace("log.start(", "log.start(7)\nlog.start(", 1)


def test_a_second_start_replaces_the_first():
    """As after MPI has started and the rank is known for certain."""
    assert len(run(SECOND_START, "3")) == 3
    assert not any("rank 7" in line for line in run(SECOND_START, "3"))


def test_start_imports_neither_numpy_nor_torch(tmp_path: Path):
    program = PROGRAM + "assert not {'numpy', 'torch'} & sys.modules.keys()"
    run(program, "0", "info", str(tmp_path))

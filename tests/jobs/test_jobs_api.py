"""`fedgan_mpi.train` in scripts under mpirun."""

from __future__ import annotations

import time

import pytest

from fedgan_mpi.testing.jobs import run_job

pytestmark = pytest.mark.jobs

SCRIPT = """
import sys
from mpi4py import MPI
import fedgan_mpi
from fedgan_mpi.callbacks import Callback

world = MPI.COMM_WORLD
CONFIG = {
    "run": {"name": sys.argv[1]},
    "data": {"devices": 4},
    "model": {"width": 4, "nz": 8},
    "evaluation": {"every": 0},
    "training": {"rounds": 4},
}
"""


def test_an_exception_in_a_callback_of_one_rank_ends_the_job(tmp_path):
    program = tmp_path / "script.py"
    program.write_text(
        SCRIPT + "class Broken(Callback):\n"
        "    def on_round_end(self, round, metrics):\n"
        "        if world.rank == 1 and round == 2:\n"
        "            raise ZeroDivisionError('in a callback')\n"
        "fedgan_mpi.train(CONFIG, callbacks=[Broken()])\n"
    )
    start = time.monotonic()
    done = run_job(3, "broken", cwd=tmp_path, program=(str(program),))
    assert done.returncode != 0 and time.monotonic() - start < 60
    assert done.stderr.count("Traceback (most recent call last)") == 1
    assert "[rank 1 on" in done.stderr and "ZeroDivisionError: in a callback" in done.stderr


def test_a_part_of_the_ranks_trains_and_one_rank_ends_the_run(tmp_path):
    program = tmp_path / "script.py"
    program.write_text(
        SCRIPT + "class End(Callback):\n"
        "    def on_round_end(self, round, metrics):\n"
        "        return world.rank == 2 and round == 1\n"
        "part = world.Split(world.rank == 0, world.rank)\n"
        "CONFIG['run']['name'] += str(world.rank == 0)\n"
        "result = fedgan_mpi.train(CONFIG, comm=part, callbacks=[End()])\n"
        "open(f'rank_{world.rank}', 'w').write(str(result.rounds))\n"
    )
    done = run_job(4, "part", cwd=tmp_path, program=(str(program),))
    assert done.returncode == 0, done.stderr
    # Lines of two ranks may be mixed, so the numbers are read from files.
    rounds = {k: (tmp_path / f"rank_{k}").read_text() for k in range(4)}
    assert rounds == {0: "4", 1: "2", 2: "2", 3: "2"}

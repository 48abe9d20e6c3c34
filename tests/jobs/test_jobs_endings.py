"""Ends of jobs: hangups, launchers that are killed, results that outlast a deadline."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
import pytest
from interrupted_jobs import FLAGS, assert_equal_runs, start_paused_job

from fedgan_mpi.checkpoint.format import checkpoints_of
from fedgan_mpi.testing.jobs import SMALL, rank_processes, run_job
from fedgan_mpi.testing.runs import wait_for_round

pytestmark = [pytest.mark.jobs, pytest.mark.slow]


def test_a_hangup_ends_like_a_termination(uninterrupted_run, tmp_path):
    """Sent to a rank: Hydra's mpirun dies of a hangup, and kills its ranks."""
    run = tmp_path / "runs" / "a"
    job = start_paused_job(tmp_path, "--run.name", "a", *FLAGS, pause_after=13)
    wait_for_round(run, 13, job)
    for process in rank_processes(job):
        os.kill(process, signal.SIGHUP)
    out, err = job.communicate(timeout=120)
    assert job.returncode == 75, err
    assert "Stopped by a signal after round 14. Checkpoint written. Resume with: " in out
    assert checkpoints_of(run)[-1].name == "round_000014"
    done = run_job(3, "--resume", "runs/a", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_equal_runs(uninterrupted_run, run)


@pytest.mark.parametrize("paused", [True, False], ids=["waiting", "training"])
def test_a_killed_launcher_ends_its_ranks(uninterrupted_run, tmp_path, paused):
    run = tmp_path / "runs" / "a"
    flags = ("--run.name", "a", *FLAGS, "--training.rounds", "30" if paused else "100000")
    job = start_paused_job(tmp_path, *flags, pause_after=12 if paused else -1)
    wait_for_round(run, 12, job)
    ranks = [psutil.Process(process) for process in rank_processes(job)]
    (launcher,) = {rank.ppid() for rank in ranks}
    os.kill(launcher, signal.SIGKILL)
    _, alive = psutil.wait_procs(ranks, timeout=30)
    for rank in alive:
        rank.kill()
    job.communicate(timeout=30)
    assert job.returncode != 0 and not alive
    if paused:
        done = run_job(3, "--resume", "runs/a", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert_equal_runs(uninterrupted_run, run)


SLOW_PROGRAM = """
import sys, time
from fedgan_mpi.checkpoint.sealing import Seal
from fedgan_mpi.report import page
from fedgan_mpi.run.record import Record
write, draw, run = page.write_report, Record.grid, Seal.run

def slow(act):
    def late(*arguments):
        time.sleep(9)
        return act(*arguments)
    return late

page.write_report = slow(write)
Record.grid = slow(draw)
Seal.run = slow(run)
from fedgan_mpi.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def test_drawing_and_writing_may_take_longer_than_the_deadline(tmp_path):
    program = tmp_path / "slow.py"
    program.write_text(SLOW_PROGRAM)
    flags = ("--run.name", "a", "--training.rounds", "2", "--link.deadline", "4", *SMALL)
    began = time.monotonic()
    done = run_job(3, *flags, cwd=tmp_path, program=(str(program),))
    assert done.returncode == 0, done.stderr
    assert "hang" not in done.stderr and time.monotonic() - began > 27
    assert (Path(tmp_path) / "runs" / "a" / "report.html").exists()

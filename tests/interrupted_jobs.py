"""Jobs that pause before a chosen round, so that a test can signal or kill them there."""

from __future__ import annotations

import re
import signal
import subprocess
from pathlib import Path

from fedgan_mpi.checkpoint.format import checkpoints_of
from fedgan_mpi.testing.jobs import SMALL, start_job
from fedgan_mpi.testing.runs import differences, wait_for_round

ROUNDS = 30
FLAGS = (
    *SMALL, "--training.rounds", str(ROUNDS), "--evaluation.every", "10",
    "--checkpoint.every", "5",
)  # fmt: skip

# After the line of round PAUSE, the server waits for a signal. The other ranks wait for the server
# in the next round, however slow the machine is.
PAUSED_PROGRAM = """
import sys, time
from fedgan_mpi.training import signals
signals.install()
from fedgan_mpi.run.record import Record

write_round = Record.round

def write_and_pause(record, stats):
    write_round(record, stats)
    while record.run is not None and stats["round"] == PAUSE and not is_signalled():
        time.sleep(0.01)

def is_signalled():
    return signals.requeue_requested() or signals.interrupted()

Record.round = write_and_pause
from fedgan_mpi.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def start_paused_job(cwd: Path, *flags: str, pause_after: int) -> subprocess.Popen[str]:
    """Start a job of three ranks that stops before round `pause_after` + 1 until a signal."""
    program = PAUSED_PROGRAM.replace("PAUSE", str(pause_after))
    return start_job(3, *flags, cwd=cwd, program=("-c", program))


def stop_in_round_14(
    job: subprocess.Popen[str], run: Path, number: signal.Signals, status: int
) -> None:
    """Signal a job that pauses after round 13. Assert that it ends in order after round 14."""
    wait_for_round(run, 13, job)
    job.send_signal(number)
    out, err = job.communicate(timeout=120)
    assert job.returncode == status, err
    (message,) = re.findall(r"Stopped by a signal after round (\d+)\..* Resume with: (.*)", out)
    assert message == ("14", "mpirun -n 3 python -m fedgan_mpi train --resume runs/a")
    assert checkpoints_of(run)[-1].name == "round_000014"
    assert not list(run.glob("checkpoints/.*")) and not (run / "generator.safetensors").exists()


def assert_equal_runs(run: Path, other: Path) -> None:
    """Assert that statistics (measured seconds aside), generators and grids are the same bits."""
    assert differences(run, other) == []

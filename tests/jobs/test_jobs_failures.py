"""Jobs in which a rank fails, hangs or is stopped, a loss diverges, or the disk is full."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
from interrupted_jobs import FLAGS, assert_equal_runs, start_paused_job
from safetensors.torch import load

from fedgan_mpi.checkpoint.format import checkpoints_of, read_content, read_manifest
from fedgan_mpi.testing.jobs import SMALL, rank_processes, run_job
from fedgan_mpi.testing.runs import wait_for_round

pytestmark = [pytest.mark.jobs, pytest.mark.slow]

# Device 2 runs FAULT instead of its local steps of round 1.
FAULTY_PROGRAM = """
import sys, time
from fedgan_mpi.federation.device import Device

train_discriminator = Device.train_discriminator

def faulty(self, t, *rest):
    if self.index == 2 and t == 1:
        FAULT
    return train_discriminator(self, t, *rest)

Device.train_discriminator = faulty
from fedgan_mpi.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def faulty_program(directory: Path, fault: str) -> tuple[str]:
    path = directory / "faulty.py"
    path.write_text(FAULTY_PROGRAM.replace("FAULT", fault))
    return (str(path),)


# Rank 1 is killed when it calls one of these, in the order of a start.
STARTS = ("setup.read_shards", "loop.build_algorithm", "loop.resume")
DYING_PROGRAM = """
import os, signal, sys, time
from importlib import import_module
from fedgan_mpi.comm.launcher import announced_rank

if announced_rank() == 1:
    if process := os.fork():  # the launcher does not notice the death of the rank itself
        os.waitpid(process, 0)
        time.sleep(60)
        sys.exit(1)
    module, _, name = "fedgan_mpi.training.PLACE".rpartition(".")
    setattr(import_module(module), name, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
from fedgan_mpi.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("place", STARTS)
def test_a_death_before_the_rounds_ends_the_job(place, uninterrupted_run, tmp_path):
    """Also if the launcher does not notice the death, or waits as SLURM does."""
    program = tmp_path / "dying.py"
    program.write_text(DYING_PROGRAM.replace("PLACE", place))
    flags = ["--run.name", "a", *FLAGS]
    if "resume" in place:
        shutil.copytree(uninterrupted_run, tmp_path / "runs" / "a")
        flags = ["--resume", "runs/a"]
    done = run_job(3, *flags, cwd=tmp_path, program=(str(program),))
    assert done.returncode != 0
    message = "rank 1 of this machine has died, and the job ends"
    assert done.stderr.count(message) == 1 and "Traceback" not in done.stderr, done.stderr


def test_an_exception_in_a_round_ends_the_job_with_one_traceback(tmp_path):
    program = faulty_program(tmp_path, "raise RuntimeError('a bug on one rank')")
    start = time.monotonic()
    done = run_job(3, "--training.rounds", "3", *SMALL, cwd=tmp_path, program=program)
    assert done.returncode != 0
    assert done.stderr.count("Traceback (most recent call last)") == 1
    assert "[rank 2 on" in done.stderr and "a bug on one rank" in done.stderr
    assert time.monotonic() - start < 60


def test_a_loss_that_is_not_finite_stops_all_ranks(tmp_path):
    done = run_job(
        3, "--run.name", "a", "--training.rounds", "50", "--training.discriminator_lr", "1e30",
        "--training.optimizer", "sgd", "--checkpoint.every", "1", *SMALL, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert re.search(r"_loss of (the server|device \d) is (nan|inf|-inf) in round", done.stderr)
    assert "start anew with lower learning rates" in done.stderr
    kept = sorted((tmp_path / "runs" / "a" / "checkpoints").iterdir())
    state = load(read_content(read_manifest(kept[-1]), "server.safetensors"))
    assert state["vector"].isfinite().all()
    assert all("NaN" not in line for line in (tmp_path / "runs/a/stats.jsonl").read_text().split())


def test_a_hanging_rank_is_named_with_its_stack(tmp_path):
    program = faulty_program(tmp_path, "time.sleep(1000)")
    done = run_job(3, "--link.deadline", "6", *SMALL, cwd=tmp_path, program=program)
    assert done.returncode != 0
    lines = re.findall(r"\[rank \d on .*", done.stderr)
    assert len(lines) == 1, done.stderr
    assert re.match(r"\[rank 2 on \S+\] hangs: no exchange with others for 6 s", lines[0])
    assert re.search(r"ranks 0, 1 of the same machine wait in (reduce|sum)", lines[0])
    assert "time.sleep(1000)" in done.stderr


def test_a_stopped_rank_is_named_by_the_others(tmp_path):
    flags = ("--run.name", "a", "--link.deadline", "6", *FLAGS)
    job = start_paused_job(tmp_path, *flags, pause_after=5)
    wait_for_round(tmp_path / "runs" / "a", 5, job)
    pids = rank_processes(job)
    os.kill(pids[1], signal.SIGSTOP)
    job.send_signal(signal.SIGUSR1)  # the server continues and waits for the stopped rank
    _, err = job.communicate(timeout=120)
    assert job.returncode != 0
    lines = re.findall(r"\[rank \d on .*", err)
    assert len(lines) == 1, err
    assert re.match(r"\[rank 0 on \S+\] rank 1 of this machine hangs: others have waited", lines[0])
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, "a process outlives its job"
        time.sleep(0.05)


def test_a_full_disk_costs_checkpoints_but_not_the_run(uninterrupted_run, tmp_path):
    program = tmp_path / "full_disk.py"
    program.write_text(
        "import errno, sys\n"
        "from fedgan_mpi import files\n"
        "write_synced = files.write_synced\n"
        "FULL = ('000010', 'device_0001.safetensors'), ('000015', 'checkpoint.json')\n"
        "def fail(path, content):\n"
        "    if any(round in str(path) and path.name == name for round, name in FULL):\n"
        "        raise OSError(errno.ENOSPC, 'No space left on device', str(path))\n"
        "    write_synced(path, content)\n"
        "files.write_synced = fail\n"
        "from fedgan_mpi.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    flags = ("--run.name", "a", *FLAGS, "--checkpoint.keep_last", "9")
    done = run_job(3, *flags, cwd=tmp_path, program=(str(program),))
    assert done.returncode == 0, done.stderr
    for round in (10, 15):
        message = f"no checkpoint of round {round}: "
        assert done.stdout.count(message) == 1 and "No space left on device" in done.stdout
    run = tmp_path / "runs" / "a"
    assert [path.name for path in checkpoints_of(run)] == [
        f"round_{t:06d}" for t in (0, 5, 20, 25, 30)
    ]
    assert not list(run.glob("checkpoints/.*"))
    assert_equal_runs(uninterrupted_run, run)

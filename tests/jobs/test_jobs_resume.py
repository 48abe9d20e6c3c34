"""Jobs that a signal or a kill ends, and that resume to the same bits; checkpoints that are damaged
or belong to another configuration."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from interrupted_jobs import FLAGS, ROUNDS, assert_equal_runs, start_paused_job, stop_in_round_14
from safetensors.torch import load

from fedgan_mpi.checkpoint.format import checkpoints_of, read_content, read_manifest
from fedgan_mpi.testing.jobs import rank_processes, run_job
from fedgan_mpi.testing.runs import wait_for_round

pytestmark = [pytest.mark.jobs, pytest.mark.slow]


# ------------------------------------------------------------ signals


def test_an_interrupted_job_finishes_its_round_and_resumes_bitwise(uninterrupted_run, tmp_path):
    run = tmp_path / "runs" / "a"
    job = start_paused_job(tmp_path, "--run.name", "a", *FLAGS, pause_after=13)
    stop_in_round_14(job, run, signal.SIGINT, 130)
    done = run_job(3, "--resume", "runs/a", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_equal_runs(uninterrupted_run, run)


def test_a_signal_during_start_up_leaves_a_resumable_run(uninterrupted_run, tmp_path):
    job = start_paused_job(tmp_path, "--run.name", "a", *FLAGS, pause_after=-1)
    deadline = time.monotonic() + 150
    while not all(map(catches_sigterm, pids := rank_processes(job))) or len(pids) < 3:
        assert time.monotonic() < deadline
    job.send_signal(signal.SIGTERM)  # ranks now import torch, for seconds
    out, err = job.communicate(timeout=120)
    assert job.returncode == 75, err
    assert "Stopped by a signal after round 0." in out
    done = run_job(3, "--resume", "runs/a", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_equal_runs(uninterrupted_run, tmp_path / "runs" / "a")


def catches_sigterm(pid: int) -> bool:
    (caught,) = re.findall(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return bool(int(caught, 16) & 1 << (signal.SIGTERM - 1))


def test_a_second_interrupt_ends_the_process_at_once():
    program = (
        "import time\n"
        "from fedgan_mpi.training.signals import install\n"
        "install()\n"
        "print(1, flush=True)\n"
        "time.sleep(30)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "1\n"
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(5) == 130


def test_resume_auto_starts_a_run_and_resumes_it(uninterrupted_run, tmp_path):
    """A batch script that is submitted again runs the same command."""
    command = ("--resume", "auto", "--run.name", "a", *FLAGS)
    run = tmp_path / "runs" / "a"
    (run / "checkpoints").mkdir(parents=True)  # as after a kill during start-up
    (run / "stats.jsonl").write_text("{")
    stop_in_round_14(start_paused_job(tmp_path, *command, pause_after=13), run, signal.SIGUSR1, 75)
    assert [path.name for path in run.parent.iterdir() if path != run] == ["a-unfinished-1"]
    for _ in range(2):  # the second job finds a finished run
        done = run_job(3, *command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert_equal_runs(uninterrupted_run, run)
    done = run_job(3, *command, "--model.nz", "9", cwd=tmp_path)
    assert done.returncode == 1
    assert "model.nz is 9, but must be 8 as in runs/a/config.toml" in done.stderr
    done = run_job(3, "--resume", "auto", cwd=tmp_path)
    assert done.returncode == 1
    assert "--resume auto needs run.name, the name of the run" in done.stderr


# ------------------------------------------------------------ kills


@pytest.mark.parametrize("victim", ["server", "device"])
def test_a_killed_rank_ends_the_job_and_the_run_resumes_bitwise(
    victim, uninterrupted_run, tmp_path
):
    job = start_paused_job(tmp_path, "--run.name", "a", *FLAGS, pause_after=12)
    run = tmp_path / "runs" / "a"
    wait_for_round(run, 12, job)
    os.kill(rank_processes(job)[victim == "device"], signal.SIGKILL)
    killed = time.monotonic()
    job.communicate(timeout=60)
    assert job.returncode != 0
    assert time.monotonic() - killed < 10
    (run / "samples" / ".round_000010.png.123.tmp").touch()  # a file that the kill left behind
    done = run_job(3, "--resume", "runs/a", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_equal_runs(uninterrupted_run, run)


# ------------------------------------------------------------ checkpoints


def test_a_manifest_describes_every_file_of_its_checkpoint(uninterrupted_run):
    checkpoint = checkpoints_of(uninterrupted_run)[-1]
    manifest = json.loads((checkpoint / "checkpoint.json").read_text())
    assert manifest["round"] == ROUNDS
    assert set(manifest["files"]) == {
        "server.safetensors",
        *(f"device_000{k}.safetensors" for k in range(1, 9)),
    }
    for name, entry in manifest["files"].items():
        content = read_content(read_manifest(checkpoint), name)
        assert entry["bytes"] == len(content)
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()
        assert load(content)  # tensors
    assert manifest["configuration"]["training"]["rounds"] == ROUNDS
    assert manifest["versions"]["torch"] and manifest["shards_sha256"]


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_resume_names_a_damaged_checkpoint_and_uses_the_previous_one(uninterrupted_run, tmp_path):
    run = tmp_path / "runs" / "a"
    shutil.copytree(uninterrupted_run, run)
    last, previous = checkpoints_of(run)[::-1][:2]
    flip_bit(last / "device_0002.safetensors")
    (run / "generator.safetensors").unlink()
    done = run_job(3, "--resume", "runs/a", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "not what its checkpoint" in line]
    assert f"/{last.name}/" in line and "device_0002.safetensors" in line
    assert line.endswith("; resuming from the previous checkpoint")
    assert_equal_runs(uninterrupted_run, run)
    flip_bit(last / "server.safetensors")
    flip_bit(previous / "server.safetensors")
    done = run_job(3, "--resume", "runs/a", cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    *_, line = [line for line in done.stderr.splitlines() if "not what its checkpoint" in line]
    assert f"/{previous.name}/" in line and "server.safetensors" in line


def test_resume_refuses_another_configuration_by_key(uninterrupted_run, tmp_path):
    run = tmp_path / "runs" / "a"
    shutil.copytree(uninterrupted_run, run)
    config = (run / "config.toml").read_text()
    (run / "config.toml").write_text(config.replace("nz = 8\n", "nz = 9\n", 1))
    done = run_job(2, "--resume", "runs/a", cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "model.nz is 9, but must be 8 as in runs/a/checkpoints/round_000030" in done.stderr

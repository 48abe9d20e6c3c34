"""Whole jobs that are told to end, are killed, hang, or find their checkpoints damaged."""

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
from safetensors.torch import load
from whole_jobs import SMALL, generator, lines_but_for_time, run

from fedgan_mpi.checkpoint.format import checkpoints_of, read_content, read_manifest
from fedgan_mpi.checkpoint.writer import decode, encode

pytestmark = pytest.mark.jobs
ROUNDS = 30
LONG = (
    *SMALL, "--training.rounds", str(ROUNDS), "--evaluation.every", "10",
    "--checkpoint.every", "5",
)  # fmt: skip


# The program, whose server stands still before a round until it is asked to end: so that the job is
# in that round whenever a test, on a machine that is busy, comes to send its signal or to kill.
STANDS = """
import sys, time
from fedgan_mpi.training import signals
signals.listen()
from fedgan_mpi.training import loop as train

honest = train.play_round

def stand(algorithm, t, *rest, **named):
    while t == STOP and algorithm.link.is_server and not signals._noted:
        time.sleep(0.01)
    return honest(algorithm, t, *rest, **named)

train.play_round = stand
from fedgan_mpi.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def begin(cwd: Path, *arguments: str, stands_after: int) -> subprocess.Popen[str]:
    """A job of three ranks that goes no further than so many rounds until it has a signal."""
    program = STANDS.replace("STOP", str(stands_after))
    return subprocess.Popen(
        ["mpirun", "-n", "3", sys.executable, "-c", program, *arguments],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_round(run_directory: Path, round: int, job: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 150
    while not any(
        path.exists() and f'"round": {round},' in path.read_text()
        for path in [run_directory / "stats.jsonl"]
    ):
        assert job.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    cwd = tmp_path_factory.mktemp("whole")
    done = run(3, "--run.name", "a", *LONG, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd / "runs" / "a"


def assert_same(one: Path, other: Path) -> None:
    assert lines_but_for_time(one) == lines_but_for_time(other)
    assert generator(one) == generator(other)
    of_one, of_other = (
        {grid.name: grid.read_bytes() for grid in (run / "samples").iterdir()}
        for run in (one, other)
    )
    assert of_one == of_other


def test_an_interrupt_ends_a_job_after_its_round_and_it_goes_on_bitwise(whole, tmp_path):
    here = tmp_path / "runs" / "a"
    stop(begin(tmp_path, "--run.name", "a", *LONG, stands_after=13), here, signal.SIGINT, 130)
    done = run(3, "--resume", "runs/a", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_same(whole, here)


def stop(job: subprocess.Popen[str], here: Path, how: signal.Signals, status: int) -> None:
    """A job that stands after round 13, in the next one."""
    wait_for_round(here, 13, job)
    job.send_signal(how)
    out, err = job.communicate(timeout=120)
    assert job.returncode == status, err
    (last,) = re.findall(
        r"stopped by a signal after round (\d+); to go on, with the same launcher: (.*)", out
    )
    assert last[1].endswith("train --resume runs/a")
    assert int(last[0]) == 14  # the round that it was in
    assert checkpoints_of(here)[-1].name == "round_000014"
    assert not list(here.glob("checkpoints/.*")) and not (here / "generator.safetensors").exists()


def test_a_signal_while_the_job_begins_leaves_a_start_to_go_on_from(whole, tmp_path):
    job = begin(tmp_path, "--run.name", "a", *LONG, stands_after=-1)
    deadline = time.monotonic() + 150
    while not all(map(listens, pids := rank_pids(job))) or len(pids) < 3:
        assert time.monotonic() < deadline
    job.send_signal(signal.SIGTERM)  # now that ranks go on to import torch, for seconds
    out, err = job.communicate(timeout=120)
    assert job.returncode == 75, err
    assert "stopped by a signal after round 0" in out
    done = run(3, "--resume", "runs/a", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_same(whole, tmp_path / "runs" / "a")


def listens(pid: int) -> bool:
    """Whether a process catches SIGTERM."""
    (caught,) = re.findall(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return bool(int(caught, 16) & 1 << (signal.SIGTERM - 1))


def test_a_second_interrupt_leaves_at_once(tmp_path):
    program = "import time\nfrom fedgan_mpi.training.signals import listen\nlisten()\nprint(1, flush=True)\n"
    job = subprocess.Popen(
        [sys.executable, "-c", program + "time.sleep(30)"], stdout=subprocess.PIPE, text=True
    )
    assert job.stdout is not None and job.stdout.readline() == "1\n"
    job.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert job.poll() is None  # noted only
    job.send_signal(signal.SIGINT)
    assert job.wait(5) == 130


def flip(checkpoint: Path, name: str) -> None:
    """A byte of the server's or a device's file, which may stand in one with the others'."""
    told = json.loads((checkpoint / "checkpoint.json").read_text())["files"][name]
    path = checkpoint / ("states.bin" if "at" in told else name)
    content = bytearray(path.read_bytes())
    content[told.get("at", 0) + told["bytes"] // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(whole, tmp_path):
    copy = tmp_path / "runs" / "a"
    shutil.copytree(whole, copy)
    last, before = checkpoints_of(copy)[::-1][:2]
    flip(last, "device_0002.safetensors")
    (copy / "generator.safetensors").unlink()
    done = run(3, "--resume", "runs/a", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (said,) = [line for line in done.stderr.splitlines() if "not what its checkpoint" in line]
    assert f"/{last.name}/" in said and "device_0002.safetensors" in said
    assert said.endswith("; going on from the checkpoint before")
    assert_same(whole, copy)
    flip(last, "server.safetensors")
    flip(before, "server.safetensors")
    done = run(3, "--resume", "runs/a", cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    *_, said = [line for line in done.stderr.splitlines() if "not what its checkpoint" in line]
    assert f"/{before.name}/" in said and "server.safetensors" in said


@pytest.mark.parametrize("victim", ["server", "device"])
def test_a_killed_rank_ends_the_job_and_it_goes_on_bitwise(victim, whole, tmp_path):
    job = begin(tmp_path, "--run.name", "a", *LONG, stands_after=12)
    here = tmp_path / "runs" / "a"
    wait_for_round(here, 12, job)
    os.kill(rank_pids(job)[victim == "device"], signal.SIGKILL)
    killed = time.monotonic()
    job.communicate(timeout=60)
    assert job.returncode != 0
    assert time.monotonic() - killed < 10
    leftover = here / "samples" / ".round_000010.png.123.tmp"
    leftover.touch()
    done = run(3, "--resume", "runs/a", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_same(whole, here)


def rank_pids(job: subprocess.Popen[str]) -> list[int]:
    """Process of rank 0, 1, … of a job of this machine."""
    import psutil

    found = {}
    for process in psutil.Process(job.pid).children(recursive=True):
        names = ("PMI_RANK", "OMPI_COMM_WORLD_RANK")
        environment = process.environ()
        rank = next((environment[name] for name in names if name in environment), None)
        if rank is not None:
            found[int(rank)] = process.pid
    return [found[rank] for rank in sorted(found)]


def test_checkpoints_say_what_they_are(whole):
    checkpoint = checkpoints_of(whole)[-1]
    manifest = json.loads((checkpoint / "checkpoint.json").read_text())
    assert manifest["round"] == ROUNDS
    assert set(manifest["files"]) == {
        "server.safetensors",
        *(f"device_000{k}.safetensors" for k in range(1, 9)),
    }
    for name, told in manifest["files"].items():
        content = read_content(read_manifest(checkpoint), name)
        assert told["bytes"] == len(content)
        assert told["sha256"] == hashlib.sha256(content).hexdigest()
        assert load(content)  # tensors
    assert manifest["configuration"]["training"]["rounds"] == ROUNDS
    assert manifest["versions"]["torch"] and manifest["shards_sha256"]


def test_what_parts_are_adds_up_over_ranks():
    """So that a checkpoint is agreed on with a round's own numbers."""
    names = ["server.safetensors", "device_0001.safetensors", "device_0002.safetensors"]
    parts = [
        {name: {"bytes": 2**40 + n, "sha256": hashlib.sha256(bytes([n])).hexdigest()}}
        for n, name in enumerate(names[:2])
    ]
    total = sum(encode(part, names) for part in parts)
    assert decode(total, names) == {**parts[0], **parts[1]}  # device 2's rank has died


def test_other_keys_than_the_checkpoints_are_refused_by_name(whole, tmp_path):
    copy = tmp_path / "runs" / "a"
    shutil.copytree(whole, copy)
    config = (copy / "config.toml").read_text()
    (copy / "config.toml").write_text(config.replace("nz = 8\n", "nz = 9\n", 1))
    done = run(2, "--resume", "runs/a", cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "model.nz is 9, but must be 8 as in runs/a/checkpoints/round_000030" in done.stderr


def test_a_rank_that_hangs_is_named_and_shows_where(tmp_path):
    program = tmp_path / "hanging.py"
    program.write_text(
        "import sys, time\n"
        "from fedgan_mpi.federation import rank\n"
        "honest = rank.Device.train_discriminator\n"
        "def hang(self, t):\n"
        "    if self.index == 2 and t == 1:\n"
        "        time.sleep(1000)\n"
        "    return honest(self, t)\n"
        "rank.Device.train_discriminator = hang\n"
        "from fedgan_mpi.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    done = run(3, "--link.deadline", "6", *SMALL, cwd=tmp_path, program=(str(program),))
    assert done.returncode != 0
    told = re.findall(r"\[rank \d on .*", done.stderr)
    assert len(told) == 1, done.stderr
    assert re.match(r"\[rank 2 on \S+\] hangs: no exchange with others for 6 s", told[0])
    assert re.search(r"ranks 0, 1 of the same machine wait in (average|sum)", told[0])
    assert "time.sleep(1000)" in done.stderr


def test_a_rank_that_is_stopped_is_named_by_the_others(tmp_path):
    flags = ("--run.name", "a", "--link.deadline", "6", *LONG)
    job = begin(tmp_path, *flags, stands_after=5)
    wait_for_round(tmp_path / "runs" / "a", 5, job)
    pids = rank_pids(job)
    os.kill(pids[1], signal.SIGSTOP)
    job.send_signal(signal.SIGUSR1)  # the server goes on, and waits for who is stopped
    _, err = job.communicate(timeout=120)
    assert job.returncode != 0
    told = re.findall(r"\[rank \d on .*", err)
    assert len(told) == 1, err
    assert re.match(r"\[rank 0 on \S+\] rank 1 of this machine hangs: others have waited", told[0])
    wait_for_end(pids)


def wait_for_end(pids: list[int]) -> None:
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, "a process is left behind"
        time.sleep(0.05)


def test_the_same_command_twice_begins_and_goes_on(whole, tmp_path):
    """What a batch script does that is submitted again."""
    command = ("--resume", "auto", "--run.name", "a", *LONG)
    here = tmp_path / "runs" / "a"
    (here / "checkpoints").mkdir(parents=True)  # as a job leaves it that died as it began
    (here / "stats.jsonl").write_text("{")
    stop(begin(tmp_path, *command, stands_after=13), here, signal.SIGUSR1, 75)
    assert [path.name for path in here.parent.iterdir() if path != here] == ["a-unfinished-1"]
    for _ in range(2):  # to the end, and once more, where nothing is left to do
        done = run(3, *command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert_same(whole, here)
    done = run(3, *command, "--model.nz", "9", cwd=tmp_path)
    assert done.returncode == 1
    assert "model.nz is 9, but must be 8 as in runs/a/config.toml" in done.stderr
    done = run(3, "--resume", "auto", cwd=tmp_path)
    assert done.returncode == 1
    assert "--resume auto needs run.name, by which the run is found again" in done.stderr


def test_a_disk_that_is_full_for_a_while_costs_a_checkpoint_and_not_the_run(whole, tmp_path):
    program = tmp_path / "full.py"
    program.write_text(
        "import errno, sys\n"
        "from fedgan_mpi import files\n"
        "honest = files.write_over\n"
        "def full(path, content):\n"
        "    parts = 'device_0001.safetensors', 'states.bin'\n"
        "    if '000010' in str(path) and path.name in parts:\n"
        "        raise OSError(errno.ENOSPC, 'No space left on device', str(path))\n"
        "    if '000015' in str(path) and path.name == 'checkpoint.json':\n"
        "        raise OSError(errno.ENOSPC, 'No space left on device', str(path))\n"
        "    honest(path, content)\n"
        "files.write_over = full\n"
        "from fedgan_mpi.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    flags = ("--run.name", "a", *LONG, "--checkpoint.keep_last", "9")
    done = run(3, *flags, cwd=tmp_path, program=(str(program),))
    assert done.returncode == 0, done.stderr
    for round in (10, 15):
        told = f"no checkpoint of round {round}: "
        assert done.stdout.count(told) == 1 and "No space left on device" in done.stdout
    here = tmp_path / "runs" / "a"
    assert [path.name for path in checkpoints_of(here)] == [
        f"round_{t:06d}" for t in (0, 5, 20, 25, 30)
    ]
    assert not list(here.glob("checkpoints/.*"))
    assert_same(whole, here)

"""Runs on a disk that is full, and run directories that vanish: one sentence names the file."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

import fedgan_mpi
from fedgan_mpi.callbacks import Callback
from fedgan_mpi.errors import UserError

CONFIG = {
    "model": {"width": 4, "nz": 8},
    "evaluation": {"every": 0, "samples": 32},
    "training": {"rounds": 30},
    "data": {"devices": 2},
    "checkpoint": {"every": 2},
}
NO_SPACE = "cannot be written: No space left on device"


class AfterRound(Callback):
    """Does something to the run directory after this round, and after each later one."""

    def __init__(self, round: int, act) -> None:
        self.round, self.act, self.run = round, act, Path()

    def on_run_begin(self, run, done):
        self.run = run

    def on_round_end(self, round, metrics):
        if round >= self.round and self.run.exists():
            self.act(self.run)


def refusal(directory: Path, *callbacks: Callback) -> str:
    """Return the one sentence with which a training ends."""
    config = {**CONFIG, "run": {"directory": str(directory), "name": "a"}}
    with pytest.raises(UserError) as refused:
        fedgan_mpi.train(config, callbacks=callbacks)
    assert "\n" not in str(refused.value)
    return str(refused.value)


# ------------------------------------------------------------ directories that vanish


@pytest.mark.parametrize("act", [shutil.rmtree, lambda run: run.rename(run.with_name("b"))])
def test_a_run_directory_that_vanishes_ends_the_job_with_its_next_round(tmp_path, act):
    after = AfterRound(3, act)
    message = refusal(tmp_path, after)
    path = tmp_path / "a" / "stats.jsonl"
    assert message == f"{path} was moved or deleted while this job wrote it, and the job ends"
    assert not (tmp_path / "a").exists()


def test_a_directory_of_checkpoints_that_vanishes_is_named(tmp_path, capsys):
    after = AfterRound(3, lambda run: shutil.rmtree(run / "checkpoints", True))
    message = refusal(tmp_path, after)
    assert message.startswith("no checkpoint of round 30: ") and "/a/checkpoints/" in message
    assert message.endswith("cannot be written: No such file or directory")
    assert (tmp_path / "a" / "generator.safetensors").exists()


# ------------------------------------------------------------ full disks


@pytest.fixture
def disk(tmp_path):
    """A disk of two megabytes."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(mount).returncode:
        pytest.skip("only root may mount a small disk")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(run: Path) -> None:
    """Leave no page of the disk that holds a directory."""
    with open(run / "rest", "wb", buffering=0) as rest, suppress(OSError):
        while rest.write(bytes(4096)):
            pass


def test_a_disk_that_is_full_at_the_start(disk):
    fill(disk)
    message = refusal(disk)
    assert message.startswith(f"{disk / 'a' / 'shards'} needs ")
    assert message.endswith(" bytes more, but the disk has 0")
    assert not list(disk.rglob("*.tmp"))


def test_a_disk_that_fills_up(disk, capsys):
    """The first file that the run cannot do without ends it."""
    message = refusal(disk, AfterRound(3, fill))
    assert message == f"{disk / 'a' / 'stats.jsonl'} {NO_SPACE}"
    out = capsys.readouterr().out
    assert "no checkpoint of round 4: " in out and NO_SPACE in out
    assert not list(disk.rglob("*.tmp"))


@pytest.mark.parametrize("name", ["generator.json", "generator.safetensors"])
def test_a_generator_that_cannot_be_written_is_named(tmp_path, name):
    message = refusal(tmp_path, AfterRound(30, lambda run: (run / name).mkdir()))
    reason = "it is a directory, but must be a regular file"
    assert message == f"{tmp_path / 'a' / name} cannot be written: {reason}"

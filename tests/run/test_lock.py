"""Two jobs that would write the same run directory."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from fedgan_mpi.config import Config
from fedgan_mpi.errors import UserError
from fedgan_mpi.run.directory import make_run_directory, put_aside
from fedgan_mpi.run.lock import acquire_lock, release_lock

OTHER_JOB = """
import sys
from pathlib import Path
from fedgan_mpi.run.lock import acquire_lock
acquire_lock(Path(sys.argv[1]))
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def config(tmp_path) -> Config:
    return replace(Config(), run=replace(Config().run, name="a", directory=str(tmp_path)))


def test_a_second_job_is_refused_until_the_first_ends(config, tmp_path):
    run = make_run_directory(config, "toy")
    release_lock()
    other = subprocess.Popen(
        [sys.executable, "-c", OTHER_JOB, run],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout is not None and other.stdout.readline() == "locked\n"
    with pytest.raises(UserError, match="a is being written by another job"):
        acquire_lock(run)
    with pytest.raises(UserError, match="a is being written by another job"):
        put_aside(config)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    other.kill()  # it cannot release the lock itself
    other.wait()
    acquire_lock(run)
    release_lock()
    put_aside(config)
    release_lock()
    assert [path.name for path in tmp_path.iterdir()] == ["a-unfinished-1"]


def test_a_new_run_directory_is_locked(config):
    run = make_run_directory(config, "toy")
    with pytest.raises(UserError, match="another job"):
        acquire_lock(run)
    release_lock()
    acquire_lock(run)
    release_lock()


def test_a_file_system_without_locks_is_accepted(config, monkeypatch):
    def fail(*arguments):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fedgan_mpi.run.lock.fcntl.flock", fail)
    acquire_lock(make_run_directory(config, "toy"))
    release_lock()

"""Two jobs that would write the same run directory."""

from __future__ import annotations

import os
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


READER = """
import fcntl, os, sys
if os.getuid() == 0:
    os.setgid(65534), os.setgroups([]), os.setuid(65534)
descriptor = os.open(".lock", os.O_RDONLY, dir_fd=int(sys.argv[1]))
fcntl.flock(descriptor, fcntl.LOCK_SH)
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("umask", "mode"), [(0o077, 0o600), (0o022, 0o600), (0o002, 0o660), (0o000, 0o666)]
)
def test_only_those_who_may_write_a_run_can_open_its_lock(config, umask, mode):
    """A user who can open a file can also lock it, and block a requeued job."""
    previous = os.umask(umask)
    try:
        run = make_run_directory(config, "toy")
    finally:
        os.umask(previous)
        release_lock()
    assert (run / ".lock").stat().st_mode & 0o777 == mode


def test_the_lock_of_an_older_run_is_restricted_when_it_is_taken(config):
    run = make_run_directory(config, "toy")
    release_lock()
    (run / ".lock").chmod(0o644)
    acquire_lock(run)
    release_lock()
    assert (run / ".lock").stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.getuid() != 0, reason="only root can act as another user")
def test_another_user_cannot_hold_the_lock(config):
    run = make_run_directory(config, "toy")
    run.chmod(0o755)
    release_lock()
    directory = os.open(run, os.O_RDONLY)  # whatever the permissions of its parents

    def read() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", READER, str(directory)], pass_fds=[directory],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    _, problem = read().communicate("")
    assert "PermissionError" in problem
    (run / ".lock").chmod(0o644)  # a lock of an earlier version
    holder = read()
    assert holder.stdout is not None and holder.stdout.readline() == "locked\n"
    with pytest.raises(UserError, match=r", or another user holds the lock, which was readable"):
        acquire_lock(run)
    holder.communicate("")
    acquire_lock(run)
    release_lock()
    os.close(directory)

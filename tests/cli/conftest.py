"""Fixtures: a finished run, and copies of it to damage."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fedgan_mpi.checkpoint.format import checkpoints_of
from fedgan_mpi.comm.link import Link
from fedgan_mpi.testing.mutations import JOB


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> Path:
    """A run of one process with one checkpoint. It must not be changed."""
    cwd = tmp_path_factory.mktemp("finished")
    command = [sys.executable, "-m", "fedgan_mpi", *JOB]
    subprocess.run(command, cwd=cwd, check=True, capture_output=True, timeout=120)
    assert [path.name for path in checkpoints_of(cwd / "runs" / "a")] == ["round_000002"]
    return cwd / "runs" / "a"


@pytest.fixture
def run(finished_run, tmp_path, monkeypatch) -> Path:
    """A copy of the run, as a path relative to the working directory. An abort fails the test."""
    shutil.copytree(finished_run, tmp_path / "work" / "runs" / "a")
    monkeypatch.chdir(tmp_path / "work")

    def abort(link: Link, code: int = 1) -> None:
        pytest.fail("the program would abort the job", pytrace=False)

    monkeypatch.setattr(Link, "abort", abort)
    return Path("runs/a")


@pytest.fixture
def outside(tmp_path) -> Path:
    """A directory that does not belong to the run."""
    (tmp_path / "outside").mkdir()
    return tmp_path / "outside"

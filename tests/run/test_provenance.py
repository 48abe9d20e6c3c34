"""The git state in a run's provenance."""

from __future__ import annotations

import subprocess
from pathlib import Path

from fedgan_mpi.config import Config
from fedgan_mpi.config.io import read_provenance
from fedgan_mpi.run import directory, provenance


def git(where: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=x", "-c", "user.email=x@x"]
    subprocess.run(["git", *identity, *arguments], cwd=where, check=True)


def recorded_git_state(run: Path) -> str:
    run.mkdir()
    directory.write_config(run, Config(), {})
    state: str = read_provenance(run)["git"]
    return state


def test_the_git_state_is_recorded_only_if_git_tracks_the_program(tmp_path, monkeypatch):
    """An environment inside another project's clone does not belong to that project."""
    git(tmp_path, "init", "-q")
    (tmp_path / "provenance.py").write_text("")
    (tmp_path / "other").write_text("")
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    git(tmp_path, "add", "other")
    git(tmp_path, "commit", "-qm", "other project")
    assert recorded_git_state(tmp_path / "a") == "none"
    git(tmp_path, "add", "provenance.py")
    git(tmp_path, "commit", "-qm", "this program")
    assert len(recorded_git_state(tmp_path / "b")) == 12

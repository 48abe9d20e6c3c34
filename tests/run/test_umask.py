"""Files of data and models are private, whatever the shell's umask is, unless the user says so."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from data_prep.__main__ import main as prepare
from fedgan_mpi.__main__ import main
from fedgan_mpi.testing.mutations import JOB


@pytest.fixture(autouse=True)
def open_shell(tmp_path, monkeypatch):
    """A shell whose files all users can read and its group can write."""
    monkeypatch.chdir(tmp_path)
    previous = os.umask(0o002)
    yield
    assert os.umask(previous) == 0o002, "a command leaves its umask behind"


def modes(directory: Path) -> dict[str, set[str]]:
    """Return kind -> permissions of a directory and everything below it, without the lock."""
    found: dict[str, set[str]] = {"directories": set(), "files": set()}
    for path in (directory, *directory.rglob("*")):
        if path.name != ".lock":
            mode = stat.S_IMODE(path.stat().st_mode)
            found["directories" if path.is_dir() else "files"].add(f"{mode:04o}")
    return found


@pytest.mark.parametrize(
    ("flags", "directories", "files"),
    [([], "0700", "0600"), (["--run.umask", "027"], "0750", "0640")],
    ids=["private", "group"],
)
def test_a_run_and_what_commands_add_to_it(flags, directories, files):
    assert main([*JOB, *flags, "--log.per_rank", "runs/a-logs"]) == 0
    assert main(["evaluate", "runs/a"]) == 0
    assert main(["memorization", "runs/a", "--count", "4"]) == 0
    assert main(["sample", "runs/a", "--count", "4", "--out", "runs/a-grid.png"]) == 0
    assert main(["--resume", "runs/a", "--training.rounds", "3"]) == 0
    names = {path.name for path in Path("runs").rglob("*")}
    written = {"checkpoint.json", "device_0001.h5", "memorization.json", "memorization.png"}
    assert {*written, "a-grid.png"} <= names
    assert modes(Path("runs")) == {"directories": {directories}, "files": {files}}


@pytest.mark.parametrize(
    ("flags", "directories", "files"),
    [([], "0700", "0600"), (["--umask", "027"], "0750", "0640")],
    ids=["private", "group"],
)
def test_shards(flags, directories, files):
    command = ["digits", "--devices", "2", "--out", "shards", "--processes", "1", *flags]
    assert prepare(command) == 0
    assert prepare(["inspect", "shards", "--picture", "shards/all.png", *flags]) == 0
    assert len([*Path("shards").iterdir()]) >= 5
    assert modes(Path("shards")) == {"directories": {directories}, "files": {files}}


@pytest.mark.parametrize("umask", ["700", "27", "0o77", "rwx", "", "0778", "077\n"])
def test_a_umask_that_is_none_is_refused(umask, capsys):
    right = "'0' and two octal digits, such as '077' (private) or '027' (your group may read)"
    assert main(["--run.umask", umask]) == 1
    assert capsys.readouterr().err == f"run.umask is {umask!r}, but must be {right}\n"
    assert prepare(["digits", "--out", "shards", "--umask", umask]) == 2
    assert right in capsys.readouterr().err
    assert not Path("runs").exists() and not Path("shards").exists()


def test_a_resumed_run_may_have_another_umask():
    assert main(JOB) == 0
    flags = ["--training.rounds", "3", "--run.umask", "022"]
    assert main(["--resume", "runs/a", *flags]) == 0
    newest = Path("runs/a/checkpoints/round_000003")
    assert modes(newest) == {"directories": {"0755"}, "files": {"0644"}}

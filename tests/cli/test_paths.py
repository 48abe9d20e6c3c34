"""Paths that the system refuses, in every command: one sentence with the path and the reason."""

from __future__ import annotations

import os
import stat

import pytest
from damaged_runs import refusal

import data_prep.__main__
from fedgan_mpi.errors import UserError
from fedgan_mpi.files import explain_write_errors, write_complete

LONG = "a" * 300
TOO_LONG = "File name too long\n"
RUN = "runs/a"


@pytest.mark.parametrize(
    "arguments",
    [
        ("--resume", LONG), ("--resume", "auto", "--run.name", LONG), ("--run.name", LONG),
        ("--run.directory", LONG), ("--data.shards", LONG), ("--log.per_rank", LONG), (LONG,),
        ("--evaluation.inception_weights", LONG), ("sample", LONG), ("sample", RUN, "--out", LONG),
        ("sample", RUN, "--out", f"{LONG}/x.png"), ("export", LONG, "--format", "torchexport"),
        ("export", RUN, "--format", "torchexport", "--out", LONG), ("compare", LONG),
        ("watch", LONG, "--once"), ("evaluate", LONG), ("evaluate", RUN, "--shards", LONG),
        ("memorization", LONG), ("memorization", RUN, "--shards", LONG),
    ],
    ids=lambda arguments: " ".join(arguments).replace(LONG, "LONG"),
)  # fmt: skip
def test_a_name_that_is_too_long(run, capsys, arguments):
    message = refusal(capsys, *arguments)
    assert LONG in message
    assert message.endswith((TOO_LONG, "not 300\n"))
    assert [path.name for path in run.parent.iterdir()] == ["a"]


@pytest.mark.parametrize(
    "arguments",
    [("inspect", LONG), ("digits", "--out", LONG), ("imagefolder", "--source", LONG, "--out", "x")],
    ids=lambda arguments: arguments[0],
)
def test_data_prep_refuses_a_name_that_is_too_long(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    assert data_prep.__main__.main([*arguments]) == 1
    message = capsys.readouterr().err
    assert LONG in message and message.endswith(TOO_LONG) and message.count("\n") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may create device nodes")
@pytest.mark.parametrize(
    "arguments", [("sample", RUN), ("export", RUN, "--format", "torchexport")], ids=str
)
def test_a_full_device_is_named(run, capsys, arguments):
    os.mknod("full", 0o666 | stat.S_IFCHR, os.makedev(1, 7))
    message = refusal(capsys, *arguments, "--out", "full")
    assert message == "full cannot be written: No space left on device\n"


def test_the_file_of_a_directory_is_named(tmp_path):
    (tmp_path / "table.csv").mkdir()
    with pytest.raises(UserError) as refused, explain_write_errors(tmp_path):
        write_complete(tmp_path / "table.csv", b"")
    reason = "table.csv: it is a directory, but must be a regular file"
    assert str(refused.value) == f"{tmp_path} cannot be written: {reason}"

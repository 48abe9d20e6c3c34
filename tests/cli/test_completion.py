"""Completion in the shell: what argcomplete answers for a half-typed line."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("argcomplete")

LINES = {
    "command": ("fedgan-mpi eva", ["evaluate"]),
    "key": ("fedgan-mpi --training.opt", ["--training.optimizer", "--training.optimizer_options"]),
    "key after train": ("fedgan-mpi train --run.na", ["--run.name"]),
    "choice": ("fedgan-mpi --link.average ", ["reduce", "gather"]),
    "yes or no": ("fedgan-mpi --link.survive ", ["true", "false"]),
    "name of code": ("fedgan-mpi --training.augment ", ["flip", "color", "translation", "cutout"]),
    "flag of a command": ("fedgan-mpi sample runs/a --co", ["--count"]),
    "choice of a command": ("fedgan-mpi sample --style ", ["grid", "interpolation", "classes"]),
    "data set": ("fedgan-mpi-data cel", ["celeba"]),
    "flag of a data set": ("fedgan-mpi-data mnist --part", ["--partition", "--partition-option"]),
    "nothing": ("fedgan-mpi --training.rounds ", []),
}


@pytest.mark.parametrize(("line", "words"), LINES.values(), ids=LINES.keys())
def test_the_shell_completes(line, words, tmp_path):
    module = {"fedgan-mpi": "fedgan_mpi", "fedgan-mpi-data": "data_prep"}[line.split()[0]]
    answer = tmp_path / "answer"
    environment = {
        **os.environ, "_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "COMP_LINE": line,
        "COMP_POINT": str(len(line)), "COMP_TYPE": "9", "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
    }  # fmt: skip
    command = [sys.executable, "-X", "importtime", "-m", module]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert [word.strip() for word in answer.read_text().split("\n") if word] == words
    assert " torch" not in done.stderr and "mpi4py" not in done.stderr  # it must answer at once

"""Whole jobs that start from another run, or with fixed layers, on several ranks and resumed."""

from __future__ import annotations

from pathlib import Path

import pytest
from in_process_jobs import RANKS

from fedgan_mpi.testing.jobs import SMALL
from fedgan_mpi.testing.runs import generator_bytes, losses

pytestmark = pytest.mark.mpi(min_size=3)

FLAGS = ["--data.devices=3", "--link.average=gather", "--training.rounds=2", *SMALL]


@pytest.mark.parametrize("name", ["ren", "mdgan"])
def test_a_start_gives_the_same_bits_on_any_number_of_ranks(run, tmp_path, name):
    """Also for `mdgan`, where each rank reads the discriminators of its devices."""
    flags = [*FLAGS, f"--algorithm.name={name}", "--participation.policy=random"]
    flags += ["--participation.count=2"]
    assert run(RANKS, *flags, "--run.name=before", cwd=tmp_path).returncode == 0
    flags += ["--training.start=runs/before"]
    for ranks in (1, 2, RANKS):
        done = run(ranks, *flags, f"--run.name={ranks}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    runs = [tmp_path / "runs" / name for name in ("1", "2", str(RANKS))]
    assert len({generator_bytes(each) for each in runs}) == 1
    assert losses(runs[0]) == losses(runs[1]) == losses(runs[2])
    assert losses(runs[0]) != losses(tmp_path / "runs" / "before")


def test_a_missing_start_is_one_sentence(run, tmp_path: Path):
    done = run(2, *FLAGS, "--training.start=nowhere", cwd=tmp_path)
    assert done.returncode != 0
    assert "training.start is 'nowhere', but there is no such file or directory" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "runs").exists()
    dry = run(1, "--dry-run", *FLAGS, "--training.start=nowhere", cwd=tmp_path)
    assert dry.returncode != 0 and "'nowhere', but there is no such" in dry.stderr

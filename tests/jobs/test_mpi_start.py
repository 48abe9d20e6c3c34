"""Whole jobs that start from another run, or with fixed layers, on several ranks and resumed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from in_process_jobs import RANKS

from fedgan_mpi.testing.jobs import SMALL
from fedgan_mpi.testing.runs import copy_without_last_checkpoint, generator_bytes, losses

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


def test_fixed_layers_survive_a_resume_without_the_other_run(run, tmp_path):
    """Device ranks get them from the server, because they are not sent in rounds."""
    assert run(2, *FLAGS, "--run.name=before", cwd=tmp_path).returncode == 0
    flags = [*FLAGS, "--training.rounds=4", "--checkpoint.every=2", "--training.start=runs/before"]
    flags += ["--training.freeze_discriminator=1", "--algorithm.name=fedgan", "--run.name=a"]
    flags += ["--link.wire_dtype=bfloat16"]
    done = run(RANKS, *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    runs = tmp_path / "runs"
    copy_without_last_checkpoint(runs / "a", runs / "b")
    shutil.rmtree(runs / "before")
    done = run(2, "--resume=runs/b", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert generator_bytes(runs / "a") == generator_bytes(runs / "b")
    assert losses(runs / "a") == losses(runs / "b") and len(losses(runs / "b")) == 4


def test_too_many_fixed_layers_are_one_sentence(run, tmp_path):
    flags = [*FLAGS, "--training.freeze_discriminator=3"]
    done = run(2, *flags, cwd=tmp_path)
    assert done.returncode != 0 and not (tmp_path / "runs").exists()
    assert "training.freeze_discriminator is 3, but must be at most 2" in done.stderr
    flags[-1] = "--training.freeze_discriminator=2"
    dry = run(1, "--dry-run", *flags, cwd=tmp_path)
    assert "fixed layers of D       features.0, features.2" in dry.stdout

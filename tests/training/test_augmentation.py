"""`training.augment` in whole runs of one process."""

from __future__ import annotations

from pathlib import Path

import pytest

import fedgan_mpi
from fedgan_mpi.run.stats import read_stats
from fedgan_mpi.testing.runs import (
    copy_without_last_checkpoint,
    generator_bytes,
    stats_without_seconds,
)

ADAPTIVE = {"augment": ["flip", "translation"], "augment_target": 0.5, "augment_images": 400}


def train(directory: Path, name: str, **training):
    config = {
        "run": {"directory": str(directory), "name": name},
        "data": {"devices": 2},
        "model": {"width": 4, "nz": 8},
        "evaluation": {"every": 0, "samples": 60},
        "checkpoint": {"every": 4},
        "training": {"rounds": 8, **training},
    }
    return fedgan_mpi.train(config).path


@pytest.fixture(scope="module")
def adaptive(tmp_path_factory) -> Path:
    return train(tmp_path_factory.mktemp("augment"), "adaptive", **ADAPTIVE)


def test_p_moves_once_a_round_by_the_images_of_the_round(adaptive):
    rounds, _ = read_stats(adaptive)
    p, seen, moves = 0.0, 0, set()
    for line in rounds:
        assert line["augment_probability"] == pytest.approx(p)
        step = (line["images_seen"] - seen) / 400
        up = line["augment_sign"] > 0.5
        p = min(1.0, p + step) if up else max(0.0, p - step)
        seen = line["images_seen"]
        moves.add(up)
    assert moves == {True, False} and p > 0


def test_a_run_with_adaptive_augmentation_resumes_bit_for_bit(adaptive, tmp_path):
    copy = tmp_path / "copy"
    copy_without_last_checkpoint(adaptive, copy)
    fedgan_mpi.train(copy / "config.toml", resume=copy)
    assert generator_bytes(copy) == generator_bytes(adaptive)
    assert stats_without_seconds(copy) == stats_without_seconds(adaptive)


def test_results_do_not_depend_on_overlap(adaptive, tmp_path):
    other = train(tmp_path, "other", overlap=False, **ADAPTIVE)
    assert generator_bytes(other) == generator_bytes(adaptive)


def test_lines_of_stats_have_no_p_without_a_target(tmp_path):
    rounds, _ = read_stats(train(tmp_path, "plain", rounds=2, augment=["color"]))
    assert all("augment" not in key for line in rounds for key in line)

"""The alarm for a generator whose images are all alike."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from torch import nn

import fedgan_mpi
from fedgan_mpi.config import Config
from fedgan_mpi.errors import UserError
from fedgan_mpi.evaluation.frechet import FeatureSums
from fedgan_mpi.run.stats import read_stats
from fedgan_mpi.training.scoring import Scoring
from fedgan_mpi.training.state import TrainState


class Same(nn.Module):
    """A generator that ignores its noise."""

    def __init__(self, image_shape, nz):
        super().__init__()
        self.image = nn.Parameter(torch.randn(image_shape))
        self.unused = nn.Parameter(torch.zeros(nz))

    def forward(self, z):
        return torch.tanh(self.image + 0 * (z @ self.unused)[:, None, None, None])


def collapsed(image_shape, nz, classes):
    D = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(image_shape)), 1), nn.Flatten(0))
    return Same(image_shape, nz), D


def train(directory: Path, networks=None, rounds=4, **evaluation):
    config = {
        "run": {"directory": str(directory), "name": "a"},
        "data": {"devices": 2},
        "model": {"nz": 4} | ({} if networks else {"width": 4}),
        "training": {"rounds": rounds},
        "evaluation": {"every": 1, "samples": 60, **evaluation},
    }
    result = fedgan_mpi.train(config, networks=networks)
    return result, [line for line in read_stats(result.path)[1] if "spread" in line["metric"]]


def test_the_spread_is_the_mean_squared_distance_to_the_mean():
    features = np.random.default_rng(0).normal(size=(50, 7)) * 3 + 10
    sums = FeatureSums.zero(7)
    sums.accumulate(features)
    centre = [sum(column) / 50 for column in features.T]
    squares = [
        sum((x - m) ** 2 for x, m in zip(row, centre, strict=True)) for row in features.tolist()
    ]
    assert sums.spread == pytest.approx(sum(squares) / 49)


def test_a_collapse_is_logged_and_recorded(tmp_path, capsys):
    result, lines = train(tmp_path, collapsed)
    assert result.rounds == 4
    assert [each["round"] for each in lines] == [2, 3, 4]  # rounding errors are no growth
    line = lines[-1]
    assert line["value"] < 1e-6 and 0.5 < line["floor"] < 2 and line["samples"] == 60
    output = "".join(capsys.readouterr())
    assert f"may have collapsed: after round {line['round']}, the spread of its features" in output


def test_a_collapse_can_end_the_training(tmp_path):
    result, lines = train(tmp_path, collapsed, on_collapse="stop")
    assert [line["round"] for line in lines] == [2, 3]  # the score that ends it, and the last one
    assert result.rounds == 3
    assert (result.path / "generator.safetensors").exists()


def test_a_spread_that_grows_is_no_collapse(tmp_path):
    """The first generators of a healthy run are all grey, and more varied in each score."""
    _, lines = train(tmp_path, rounds=60, every=20)
    assert lines == []


@pytest.mark.parametrize(
    ("spreads", "alarms"),
    [
        ([4e-4, 1e-5, 2e-4, 0.3, 0.8], []),  # an untrained generator varies more than the next
        ([4e-4, 0.3, 0.8, 5e-4, 6e-4, 4e-4], [3, 5]),
        ([4e-4, 1e-5, 1e-5, 9e-6], [2, 3]),
    ],
)
def test_a_spread_has_to_fall_or_stay_after_the_first_rounds(spreads, alarms):
    scoring = object.__new__(Scoring)
    scoring.context = SimpleNamespace(config=Config())
    scoring.state, scoring.record = TrainState(), MagicMock()
    found = []
    for round, spread in enumerate(spreads):
        scoring.scorer = MagicMock(spread=spread)
        if scoring._check_spread(round):
            found.append(round)
    assert found == alarms


def test_a_share_of_zero_switches_it_off(tmp_path):
    _, lines = train(tmp_path, collapsed, collapse_share=0.0, on_collapse="stop")
    assert lines == []


def test_an_impossible_share_is_refused():
    with pytest.raises(UserError, match=r"evaluation.collapse_share is 1.5, but must be from 0"):
        fedgan_mpi.train({"evaluation": {"collapse_share": 1.5}})

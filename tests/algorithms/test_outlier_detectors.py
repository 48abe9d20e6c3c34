"""The detector of outliers among losses, and the weights that follow."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.ensemble import IsolationForest

from fedgan_mpi.algorithms.aggregation.detectors import make_detector
from fedgan_mpi.config import AggregationConfig
from fedgan_mpi.errors import UserError


def make(**options):
    return make_detector(
        AggregationConfig(detector="loss_outliers", detector_options={"warmup": 0, **options})
    )


def stream(seed=0):
    return np.random.default_rng(seed)


HONEST = {1: 0.70, 2: 0.71, 4: 0.69, 5: 0.705, 6: 0.695, 7: 0.70, 8: 0.71}


@pytest.mark.parametrize("loss", [3.0, -3.0, 0.1])
def test_a_device_with_another_loss_is_found(loss):
    found = make().outliers(0, {**HONEST, 3: loss}, stream())
    assert 3 in found and len(found) < 4


def test_the_forest_is_the_authors_one():
    """FedDetect's code: points (0, |loss|), as many samples as devices."""
    sizes = set()
    for n in range(6):
        losses = {k: float(x) for k, x in enumerate(stream(n).normal(0.7, 0.2, 9), start=1)}
        seed = int(stream(5).integers(2**31))
        forest = IsolationForest(max_samples=9, random_state=seed, contamination="auto")
        predictions = forest.fit_predict([[0, abs(loss)] for loss in losses.values()])
        expected = [k for k, p in zip(losses, predictions, strict=True) if p == -1]
        sizes.add(len(expected))
        assert make().outliers(0, losses, stream(5)) == (expected if len(expected) < 4 else [])
    assert len(sizes) > 1 and max(sizes) > 0


def test_the_same_stream_finds_the_same_devices():
    losses = {k: float(x) for k, x in enumerate(stream(3).normal(0.7, 0.2, 9), start=1)}
    assert make().outliers(2, losses, stream(7)) == make().outliers(2, losses, stream(7))


def test_half_of_the_participants_are_no_outliers():
    losses = {1: 0.7, 2: 5.0, 3: 0.7, 4: 5.0}
    assert make().outliers(0, losses, stream()) == []
    assert make().outliers(0, {1: 0.7, 2: 5.0}, stream()) == []
    assert make().outliers(0, {}, stream()) == []


def test_the_search_begins_after_the_warm_up():
    detector = make(warmup=4)
    losses = {**HONEST, 3: 3.0}
    assert [bool(detector.outliers(t, losses, stream())) for t in range(6)] == 4 * [False] + [
        True,
        True,
    ]


def test_weights_fall_faster_with_every_detection():
    """w ← w · decay^n at the nth, as in the authors' code."""
    expected, weight = [1.0], 1.0
    for n in range(1, 5):
        weight *= 0.8**n
        expected.append(weight)
    assert make(decay=0.8).weights([0, 1, 2, 3, 4]) == pytest.approx(expected)
    assert all(weight > 0 for weight in make(decay=0.1).weights([0, 1000]))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"decay": 0.0}, "detector_options.decay is 0.0, but must be above 0 and at most 1"),
        ({"decay": 1.5}, "detector_options.decay is 1.5, but must be above 0 and at most 1"),
        ({"warmup": -1}, "detector_options.warmup is -1, but must be at least 0"),
        ({"warm": 1}, "unknown key aggregation.detector_options.warm = 1; did you mean warmup?"),
    ],
)
def test_impossible_detector_options_are_refused(options, sentence):
    with pytest.raises(UserError) as error:
        make(**options)
    assert sentence in str(error.value)

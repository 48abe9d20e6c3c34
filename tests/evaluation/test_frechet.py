"""The Fréchet distance against other computations, and in cases with a known value."""

from __future__ import annotations

import numpy as np
import oracle_scores
import pytest
from oracle_scores import sums_of

from fedgan_mpi.evaluation.frechet import FeatureSums, frechet_distance


def test_the_distance_equals_the_textbook_formula():
    stream = np.random.default_rng(0)
    for width in (1, 5, 64):
        a = stream.normal(size=(500, width)) @ stream.normal(size=(width, width))
        b = stream.normal(size=(300, width)) @ stream.normal(size=(width, width)) + 1
        if width == 1:
            expected = (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2
        else:
            expected = oracle_scores.frechet(a, b)
        assert frechet_distance(sums_of(a), sums_of(b)) == pytest.approx(expected, rel=1e-8)


def test_equal_images_have_distance_zero_and_shifted_ones_the_squared_shift():
    a = np.random.default_rng(1).normal(size=(200, 8))
    assert frechet_distance(sums_of(a), sums_of(a)) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(sums_of(a), sums_of(a + 3)) == pytest.approx(8 * 9)


def test_packed_sums_of_parts_add_up_to_the_sums_of_all_images():
    a = np.random.default_rng(2).normal(size=(100, 6))
    packed = sum(sums_of(part).pack() for part in np.array_split(a, 7))
    total = FeatureSums.unpack(packed, 6)
    assert total.count == 100
    np.testing.assert_allclose(total.mean, a.mean(0), rtol=1e-12)
    np.testing.assert_allclose(total.covariance, np.cov(a, rowvar=False), rtol=1e-10, atol=1e-14)


def test_singular_covariances_give_finite_distances():
    stream = np.random.default_rng(3)
    few = stream.normal(size=(5, 64))  # fewer images than features
    many = stream.normal(size=(500, 64))
    constant = np.ones((50, 64))
    for a, b in ((few, many), (constant, many), (few, constant), (constant, constant)):
        value = frechet_distance(sums_of(a), sums_of(b))
        assert np.isfinite(value) and value > -1e-9


def test_features_that_are_always_zero_give_finite_distances():
    stream = np.random.default_rng(0)
    few, partly_zero = stream.normal(size=(10, 64)), stream.normal(size=(200, 64))
    partly_zero[:, :40] = 0
    value = frechet_distance(sums_of(few), sums_of(partly_zero))
    assert np.isfinite(value) and value > 0
    itself = frechet_distance(sums_of(partly_zero), sums_of(partly_zero))
    assert itself == pytest.approx(0, abs=1e-6)

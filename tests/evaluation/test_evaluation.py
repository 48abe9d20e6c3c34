"""The Fréchet distance against another way to compute it, and what it must say of simple cases."""

from __future__ import annotations

import numpy as np
import pytest

from fedgan_mpi.evaluation.frechet import Moments, frechet_distance


def moments(features: np.ndarray) -> Moments:
    sums = Moments.zero(features.shape[1])
    sums.add(features)
    return sums


def plainly(a: np.ndarray, b: np.ndarray) -> float:
    """The textbook formula with the eigenvalues of the plain, unsymmetric product."""
    difference = a.mean(0) - b.mean(0)
    left, right = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = np.sqrt(np.linalg.eigvals(left @ right).astype(complex)).real.sum()
    return float(difference @ difference + np.trace(left) + np.trace(right) - 2 * root)


def test_it_equals_the_textbook_formula():
    stream = np.random.default_rng(0)
    for width in (1, 5, 64):
        a = stream.normal(size=(500, width)) @ stream.normal(size=(width, width))
        b = stream.normal(size=(300, width)) @ stream.normal(size=(width, width)) + 1
        if width == 1:
            expected = (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2
        else:
            expected = plainly(a, b)
        assert frechet_distance(moments(a), moments(b)) == pytest.approx(expected, rel=1e-8)


def test_same_images_have_distance_zero_and_a_shift_its_square():
    a = np.random.default_rng(1).normal(size=(200, 8))
    assert frechet_distance(moments(a), moments(a)) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(moments(a), moments(a + 3)) == pytest.approx(8 * 9)


def test_sums_over_parts_are_the_sum_over_all():
    a = np.random.default_rng(2).normal(size=(100, 6))
    packed = sum(moments(part).pack() for part in np.array_split(a, 7))
    whole = Moments.unpack(packed, 6)
    assert whole.count == 100
    np.testing.assert_allclose(whole.mean, a.mean(0), rtol=1e-12)
    np.testing.assert_allclose(whole.covariance, np.cov(a, rowvar=False), rtol=1e-10, atol=1e-14)


def test_a_singular_covariance_gives_a_number():
    stream = np.random.default_rng(3)
    few = stream.normal(size=(5, 64))  # fewer images than features
    many = stream.normal(size=(500, 64))
    constant = np.ones((50, 64))
    for a, b in ((few, many), (constant, many), (few, constant), (constant, constant)):
        value = frechet_distance(moments(a), moments(b))
        assert np.isfinite(value) and value > -1e-9

"""Aggregation rules against oracles in plain Python, and their properties."""

from __future__ import annotations

import statistics
from functools import cache

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgan_mpi.algorithms.aggregation.rules import make_rule
from fedgan_mpi.config import AggregationConfig
from fedgan_mpi.errors import UserError


def median(rows, shares):
    return [statistics.median(column) for column in zip(*rows, strict=True)]


def trimmed(trim):
    def rule(rows, shares):
        columns = [sorted(column) for column in zip(*rows, strict=True)]
        kept = [column[trim : len(column) - trim] for column in columns]
        return [sum(column) / len(column) for column in kept]

    return rule


def squared_distance(a, b):
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))


def krum(faulty, chosen):
    """Blanchard et al. 2017: the sum of squared distances to the N - f - 2 nearest others."""

    def rule(rows, shares):
        scores = []
        for n, row in enumerate(rows):
            others = [squared_distance(row, other) for m, other in enumerate(rows) if m != n]
            scores.append(sum(sorted(others)[: len(rows) - faulty - 2]))
        best = sorted(range(len(rows)), key=lambda n: (scores[n], n))
        best = best[: chosen or len(rows) - faulty]
        return [sum(rows[n][i] for n in best) / len(best) for i in range(len(rows[0]))]

    return rule


def norm_bound(rows, shares):
    """The rows are updates."""
    norms = [squared_distance(row, [0.0] * len(row)) ** 0.5 for row in rows]
    bound = statistics.median(norms)
    scales = [1.0 if norm <= bound else bound / norm for norm in norms]
    return [
        sum(share * scale * row[i] for share, scale, row in zip(shares, scales, rows, strict=True))
        for i in range(len(rows[0]))
    ]


ORACLES = {
    "median": ({}, median),
    "trimmed_mean": ({}, trimmed(1)),
    "trimmed_mean 2": ({"trim": 2}, trimmed(2)),
    "trimmed_mean 0": ({"trim": 0}, trimmed(0)),
    "krum": ({}, krum(1, 1)),
    "krum 2": ({"faulty": 2}, krum(2, 1)),
    "multi_krum": ({}, krum(1, None)),
    "multi_krum 3": ({"faulty": 2, "chosen": 3}, krum(2, 3)),
    "norm_bound": ({}, norm_bound),
}


@cache
def rule_of(name, **options):
    return make_rule(AggregationConfig(rule=name, options=options))


def combine(name, options, rows, shares=None):
    rule = rule_of(name.split()[0], **options)
    vectors = torch.tensor(rows, dtype=torch.float64)
    weights = torch.tensor(shares or [1 / len(rows)] * len(rows), dtype=torch.float64)
    return rule.combine(vectors, weights)


def random_rows(count, length=6, seed=0):
    stream = torch.Generator().manual_seed(seed)
    return torch.randn(count, length, generator=stream, dtype=torch.float64).tolist()


@pytest.mark.parametrize("count", [7, 8, 11])
@pytest.mark.parametrize("case", ORACLES)
def test_a_rule_equals_its_oracle(case, count):
    options, oracle = ORACLES[case]
    rows = random_rows(count, seed=count)
    weights = [n + 1.0 for n in range(count)]
    shares = [weight / sum(weights) for weight in weights]
    expected = torch.tensor(oracle(rows, shares), dtype=torch.float64)
    torch.testing.assert_close(combine(case, options, rows, shares), expected)


@pytest.mark.parametrize("count", range(1, 20))
def test_the_median_of_any_number_of_devices(count):
    rows = random_rows(count, length=40_000, seed=count)
    expected = torch.tensor(median(rows, None), dtype=torch.float64)
    torch.testing.assert_close(combine("median", {}, rows), expected)


def test_the_geometric_median_minimizes_the_weighted_sum_of_distances():
    """Pillutla et al. 2022. On a line with equal weights it is the median."""
    line = [[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [30.0, 0.0], [1000.0, 0.0]]
    result = combine("geometric_median", {"iterations": 400}, line)
    torch.testing.assert_close(result, torch.tensor([2.0, 0.0]).double(), atol=1e-3, rtol=0)
    rows, shares = random_rows(7, seed=3), [0.3, 0.1, 0.1, 0.1, 0.1, 0.1, 0.2]

    def cost(point):
        return sum(
            share * squared_distance(point, row) ** 0.5
            for share, row in zip(shares, rows, strict=True)
        )

    best = combine("geometric_median", {"iterations": 400}, rows, shares).tolist()
    for n in range(len(best)):
        for step in (1e-3, -1e-3):
            moved = [*best[:n], best[n] + step, *best[n + 1 :]]
            assert cost(moved) > cost(best)
    # The default number of iterations is near.
    few = combine("geometric_median", {}, rows, shares)
    assert cost(few.tolist()) < 1.01 * cost(best)


ALL = ("median", "trimmed_mean", "krum", "multi_krum", "geometric_median", "norm_bound")
ROBUST = [name for name in ALL if name != "norm_bound"]
numbers = st.floats(-100, 100, width=32)


@pytest.mark.parametrize("name", ALL)
@given(rows=st.lists(st.tuples(numbers, numbers), min_size=5, max_size=9), data=st.data())
@settings(max_examples=30, deadline=None)
def test_the_order_of_devices_does_not_matter(name, rows, data):
    order = data.draw(st.permutations(range(len(rows))))
    first, second = combine(name, {}, rows), combine(name, {}, [rows[n] for n in order])
    if name in ("krum", "multi_krum"):  # equal scores: the lowest index wins
        scores = krum_scores(rows)
        if len(set(scores)) < len(scores):
            return
    torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-6)


def krum_scores(rows):
    return [
        round(sum(sorted(squared_distance(a, b) for b in rows)[: len(rows) - 2]), 6) for a in rows
    ]


@pytest.mark.parametrize("name", ALL)
@given(row=st.lists(numbers, min_size=3, max_size=3), count=st.integers(5, 9))
@settings(max_examples=20, deadline=None)
def test_equal_inputs_are_a_fixed_point(name, row, count):
    torch.testing.assert_close(
        combine(name, {}, [row] * count), torch.tensor(row).double(), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("name", ROBUST)
@pytest.mark.parametrize("size", [1e3, 1e9, 1e15])
def test_one_arbitrary_device_moves_a_robust_rule_boundedly(name, size):
    rows = random_rows(8, seed=1)
    radius = max(squared_distance(row, [0.0] * 6) ** 0.5 for row in rows)
    attacked = [*rows[:7], [size] * 6]
    assert combine(name, {}, attacked).norm() < 3 * radius
    assert torch.tensor(attacked).double().mean(0).norm() > size / 8  # the mean follows it


@given(data=st.data(), faulty=st.integers(1, 3), more=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_arbitrary_devices_move_robust_rules_boundedly_and_the_mean_not(data, faulty, more):
    """f of n > 2 f devices. Median and trimmed mean stay between honest values; the geometric
    median within 2 (n - f) / (n - 2 f) radii of the honest devices (Minsker 2015, lemma 2.1)."""
    count = 2 * faulty + more
    point = st.tuples(numbers, numbers)
    honest = data.draw(st.lists(point, min_size=count - faulty, max_size=count - faulty))
    wild = st.floats(-1e12, 1e12)
    attacks = data.draw(st.lists(st.tuples(wild, wild), min_size=faulty, max_size=faulty))
    rows = data.draw(st.permutations([*honest, *attacks]))
    columns = list(zip(*honest, strict=True))
    low, high = (torch.tensor([f(c) for c in columns]).double() for f in (min, max))
    for name, options in (("median", {}), ("trimmed_mean", {"trim": faulty})):
        result = combine(name, options, rows)
        assert (result >= low - 1e-9).all() and (result <= high + 1e-9).all()
    centre = torch.tensor(honest).double().mean(0)
    radius = max((torch.tensor(row).double() - centre).norm().item() for row in honest)
    result = combine("geometric_median", {"iterations": 300}, rows)
    assert (result - centre).norm() <= 2 * (count - faulty) / (count - 2 * faulty) * radius + 1e-3
    attacks = [(1e12, 0.0)] * faulty
    mean = torch.tensor([*honest, *attacks]).double().mean(0)
    assert mean[0] > 0.99 * 1e12 * faulty / count


def test_the_geometric_median_is_the_one_of_its_authors():
    """The package geom-median is Pillutla's. It stops when the sum of distances does."""
    geom_median = pytest.importorskip("geom_median.numpy")
    for seed in range(5):
        rows, weights = random_rows(9, seed=seed), [n + 1.0 for n in range(9)]
        arrays = [numpy.array(row) for row in rows]
        expected = geom_median.compute_geometric_median(arrays, numpy.array(weights)).median
        shares = [weight / sum(weights) for weight in weights]
        result = combine("geometric_median", {"iterations": 200}, rows, shares)
        torch.testing.assert_close(result, torch.from_numpy(expected), rtol=0, atol=1e-5)


def test_two_arbitrary_devices_break_a_rule_for_one():
    attacked = [*random_rows(5), [1e9] * 6, [1e9] * 6]
    assert combine("trimmed_mean", {"trim": 1}, attacked).norm() > 1e8
    assert combine("trimmed_mean", {"trim": 2}, attacked).norm() < 10


def test_norm_bound_keeps_the_direction_of_a_long_update():
    rows = [[1.0, 0.0], [0.0, 1.0], [1000.0, 0.0]]
    torch.testing.assert_close(
        combine("norm_bound", {}, rows), torch.tensor([2.0, 1.0]).double() / 3
    )


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("trimmed_mean", {"trim": -1}, "aggregation.options.trim is -1, but must be at least 0"),
        ("krum", {"faulty": -1}, "aggregation.options.faulty is -1, but must be at least 0"),
        ("multi_krum", {"chosen": 0}, "aggregation.options.chosen is 0, but must be at least 1"),
        ("geometric_median", {"iterations": 0}, "iterations is 0, but must be at least 1"),
        ("geometric_median", {"smoothing": 0.0}, "smoothing is 0.0, but must be above 0"),
        ("krum", {"fauly": 1}, "unknown key aggregation.options.fauly = 1; did you mean faulty?"),
    ],
)
def test_impossible_options_are_refused(name, options, sentence):
    with pytest.raises(UserError) as error:
        make_rule(AggregationConfig(rule=name, options=options))
    assert sentence in str(error.value)

"""Compressors of updates against naive ones, and their properties."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedgan_mpi.algorithms.aggregation.compressors import make_compressor
from fedgan_mpi.config import AggregationConfig
from fedgan_mpi.errors import UserError


@cache
def compressor_of(name, **options):
    return make_compressor(AggregationConfig(compression=name, compression_options=options))


def sent(name, options, update, seed=0):
    """Return the update that arrives, and the bytes of its message."""
    compressor = compressor_of(name, **options)
    bits = compressor.bits(len(update), 8 * update.element_size())
    message = torch.zeros(bits // 8, dtype=torch.uint8)
    compressor.encode(update.clone(), message, torch.Generator().manual_seed(seed))
    arrived = torch.full_like(update, math.nan)
    compressor.decode(message, arrived)
    return arrived, len(message)


def random_update(size, seed=0, dtype=torch.float64):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_top_k_sends_the_greatest_numbers(size, share, dtype):
    update = random_update(size, dtype=dtype)
    arrived, nbytes = sent("top_k", {"share": share}, update)
    count = max(1, round(share * size))
    greatest = sorted(range(size), key=lambda i: -abs(float(update[i])))[:count]
    expected = torch.zeros_like(update)
    for i in greatest:
        expected[i] = update[i]
    assert torch.equal(arrived, expected)
    assert nbytes == count * (4 + update.element_size())
    assert torch.equal((update - arrived) + arrived, update)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("size", "bucket"), [(1, 512), (7, 3), (1024, 512), (1300, 512)])
def test_qsgd_rounds_to_a_neighbouring_level_of_the_bucket(size, bucket, dtype):
    update = random_update(size, dtype=dtype)
    arrived, nbytes = sent("qsgd", {"bucket": bucket}, update)
    buckets = math.ceil(size / bucket)
    assert nbytes == size + buckets * update.element_size()
    for n in range(buckets):
        part = slice(n * bucket, (n + 1) * bucket)
        step = float(update[part].abs().max()) / 127
        levels = arrived[part].double() / step
        torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)
        assert levels.abs().max() == pytest.approx(127)
        assert (arrived[part] - update[part]).abs().max() <= step * (1 + 1e-5)
    torch.testing.assert_close((update - arrived) + arrived, update)


def test_qsgd_is_unbiased():
    """The mean over draws approaches the update; the error of a single draw does not vanish."""
    update = random_update(200)
    draws = torch.stack([sent("qsgd", {"bucket": 64}, update, seed)[0] for seed in range(4000)])
    step = update.abs().max() / 127
    deviation = step / 2 / math.sqrt(len(draws))  # the largest of a Bernoulli variable
    assert (draws.mean(0) - update).abs().max() < 5 * deviation
    assert (draws[0] - update).abs().max() > 100 * deviation
    assert len({tuple(draw.tolist()) for draw in draws[:10]}) == 10  # draws differ


@given(
    values=st.lists(
        st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40
    )
)
@example(values=[9.675545506623564e-41])
@example(values=[3e38, -1e-45])
@settings(max_examples=100, deadline=None)
@pytest.mark.parametrize(("name", "options"), [("top_k", {"share": 0.3}), ("qsgd", {"bucket": 7})])
def test_an_update_never_grows(name, options, values):
    """No number changes its sign, and the greatest magnitude stays."""
    update = torch.tensor(values, dtype=torch.float32)
    arrived, _ = sent(name, options, update)
    assert (arrived.sign() * update.sign() >= 0).all()
    assert arrived.abs().max() == update.abs().max()


@pytest.mark.parametrize("name", ["top_k", "qsgd"])
def test_zeros_arrive_as_zeros(name):
    arrived, _ = sent(name, {}, torch.zeros(1000))
    assert not arrived.any()


@pytest.mark.parametrize("name", ["top_k", "qsgd"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_message_shows_that_its_update_is_not_finite(name, value):
    update = random_update(1000)
    update[3] = value
    compressor = make_compressor(AggregationConfig(compression=name))
    message = torch.zeros(compressor.bits(1000, 64) // 8, dtype=torch.uint8)
    compressor.encode(update, message, torch.Generator())
    assert not message[: 8 * compressor.floats(1000)].view(torch.float64).isfinite().all()


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("top_k", {"share": 0.0}, "compression_options.share is 0.0, but must be above 0 to 1"),
        ("top_k", {"share": 1.5}, "compression_options.share is 1.5, but must be above 0 to 1"),
        ("qsgd", {"bucket": 0}, "compression_options.bucket is 0, but must be at least 1"),
        ("qsgd", {"share": 0.1}, "unknown key aggregation.compression_options.share"),
        ("none", {"share": 0.1}, "share = 0.1; none takes no options"),
    ],
)
def test_impossible_compression_options_are_refused(name, options, sentence):
    with pytest.raises(UserError) as error:
        make_compressor(AggregationConfig(compression=name, compression_options=options))
    assert sentence in str(error.value)

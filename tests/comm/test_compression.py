"""Rounding to 16 bits, on one rank: what a number becomes, and what is kept of the rest."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from oracle_wire import ROUNDINGS
from torch.profiler import profile

from fedgan_mpi.comm.compression import HALF_STEP, Wire

DTYPES = list(ROUNDINGS)


def every_magnitude(count: int = 200_000) -> torch.Tensor:
    """Random bits of float32: all exponents and signs, subnormal numbers too, but finite ones."""
    bits = np.random.default_rng(0).integers(0, 2**32, count, dtype=np.uint32)
    numbers = bits.view(np.float32)
    return torch.from_numpy(numbers[np.isfinite(numbers)].copy())


def there_and_back(wire: Wire, vector: torch.Tensor) -> torch.Tensor:
    arrived = torch.full_like(vector, 7.0)
    wire.unpack(wire.pack(vector, "test"), arrived)
    return arrived


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_are_rounded_to_the_nearest(dtype):
    numbers = torch.cat([every_magnitude(), torch.tensor([0.0, -0.0, 1.0, 65504.0, 1e-7])])
    arrived = there_and_back(Wire(dtype), numbers)
    assert np.array_equal(arrived.numpy(), ROUNDINGS[dtype](numbers.numpy()))
    assert not torch.equal(arrived, numbers)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_round_trip_is_idempotent_and_errs_by_half_a_step_at_most(dtype):
    wire, numbers = Wire(dtype), torch.linspace(-9, 9, 200_001) ** 3
    once = there_and_back(wire, numbers)
    assert torch.equal(there_and_back(wire, once), once)
    # The step between neighbours: 2^(exponent - bits after the point).
    exponents = numbers.abs().clamp(min=2.0**-14).log2().floor()
    step = 2 ** (exponents - {"bfloat16": 7, "float16": 10}[dtype])
    errors = (once - numbers).abs() / step
    assert errors.max() <= 0.5
    assert errors.max() > 0.49  # and no less: nothing finer travels
    normal = numbers.abs() > 2.0**-14
    relative = ((once - numbers).abs() / numbers.abs())[normal]
    assert HALF_STEP[dtype] * 0.98 < relative.max() <= HALF_STEP[dtype]


@pytest.mark.parametrize("dtype", ["float32", *DTYPES])
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("length", [7, 300_000])
def test_rows_are_added_up_in_their_order(dtype, count, length):
    wire, stream = Wire(dtype), np.random.default_rng(5)
    numbers = stream.normal(size=(count, length)) * 10.0 ** stream.integers(-3, 4, (count, 1))
    rows = torch.from_numpy(numbers.astype(np.float32))
    rows[:, 0] = -0.0
    expected = np.zeros(length, np.float32)
    for row in rows.numpy():
        expected += ROUNDINGS[dtype](row) if dtype != "float32" else row
    into = torch.full((length,), math.nan)
    wire.sum([wire.pack(row, place) for place, row in enumerate(rows)], into)
    assert np.array_equal(into.numpy(), expected)
    assert not into[:1].signbit().any()  # as where zeros are added to


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_stay_zeros_and_what_is_not_finite_is_told(dtype):
    wire = Wire(dtype)
    assert torch.equal(there_and_back(wire, torch.zeros(5)), torch.zeros(5))
    broken = there_and_back(wire, torch.tensor([math.nan, math.inf, -math.inf]))
    assert broken[0].isnan() and broken[1:].tolist() == [math.inf, -math.inf]
    large = torch.tensor([1.0, -65600.0])
    assert (
        wire.carries(large)
        == (dtype == "bfloat16")
        == bool(there_and_back(wire, large).isfinite().all())
    )
    assert wire.carries(torch.tensor([65504.0, -65504.0]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_travel_as_integers_and_half_as_many_bytes(dtype):
    wire, vector = Wire(dtype), torch.randn(1001)
    packed = wire.pack(vector, "test")
    assert not packed.is_floating_point()  # so that no MPI can add it up
    assert packed.nbytes == wire.nbytes(vector) == 2 * 1001
    assert wire.pack(vector, "test").data_ptr() == packed.data_ptr() != vector.data_ptr()


def test_full_width_travels_as_it_is():
    wire, vector = Wire("float32"), torch.randn(9)
    assert wire.pack(vector, "test") is vector
    assert (wire.nbytes(vector), wire.rounds, wire.real_half) == (36, False, 0.0)
    assert wire.copy(vector, "test").data_ptr() != vector.data_ptr()


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_are_taken_in_the_vectors_own_type(dtype):
    """1 + 2^-12, 5000 times: in 16 bits the small parts would vanish."""
    wire, total = Wire(dtype), torch.ones(70_000)
    small = wire.pack(torch.full((70_000,), 2.0**-12), "test")
    for _ in range(2048):
        wire.add(small, total)
    assert torch.equal(total, torch.full((70_000,), 1.5))


@pytest.mark.parametrize("dtype", DTYPES)
def test_error_feedback_sends_in_the_end_what_was_meant(dtype):
    """A vector that stays within half a step: without feedback its receiver never sees it move."""
    wire, plain = Wire(dtype), Wire(dtype)
    whole = torch.ones(300)
    residual = torch.zeros_like(whole)
    wire.carry_over(whole, residual)
    sent, sent_plainly = torch.zeros(300, dtype=torch.float64), torch.zeros(300).double()
    meant = torch.zeros(300, dtype=torch.float64)
    step = 2 * HALF_STEP[dtype]
    for _ in range(64):
        whole.copy_(1 + 0.3 * step * torch.rand(300))
        meant += whole
        sent += there_and_back(wire, whole)
        sent_plainly += there_and_back(plain, whole)
        assert residual.abs().max() <= step / 2 * 1.001
    assert (sent - meant).abs().max() <= step / 2 * 1.001
    assert (sent_plainly - meant).abs().min() > 2 * step


def test_a_slice_has_its_own_part_of_the_residual():
    wire, whole = Wire("bfloat16"), torch.full((100,), 1.001)
    residual = torch.zeros(100)
    wire.carry_over(whole[20:], residual[20:])
    wire.pack(whole[30:50], "test")
    touched = residual != 0
    assert touched[30:50].all() and not touched[:30].any() and not touched[50:].any()
    elsewhere = torch.full((100,), 1.001)
    wire.pack(elsewhere, "other")
    assert torch.equal(touched, residual != 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_uplink_and_its_residual_add_up_to_what_was_meant(dtype):
    wire = Wire(dtype)
    vector, residual = torch.randn(50_000), 0.001 * torch.randn(50_000)
    meant = vector + residual
    wire.send_with(residual, vector)
    assert np.array_equal(vector.numpy(), ROUNDINGS[dtype](meant.numpy()))
    assert torch.equal(vector + residual, meant)
    assert torch.equal(there_and_back(wire, vector), vector)  # the link's rounding changes nothing


def allocated(act) -> int:
    """Bytes that torch takes anew while it acts."""
    with profile(profile_memory=True) as watched:
        act()
    return sum(max(0, event.self_cpu_memory_usage) for event in watched.events())


@pytest.mark.parametrize("dtype", ["float32", *DTYPES])
def test_nothing_is_allocated_once_warm(dtype):
    wire, vector, total = Wire(dtype), torch.randn(100_000), torch.zeros(100_000)
    whole, residual, up = torch.randn(100_000), torch.zeros(100_000), torch.zeros(100_000)
    wire.carry_over(whole, residual)

    def act():
        packed = wire.pack(vector, "down")
        wire.unpack(packed, vector)
        wire.add(packed, total)
        wire.pack(whole, "with residual")
        wire.copy(vector, "copy")
        if wire.rounds:
            wire.send_with(up, vector)

    act()
    assert allocated(act) < 1000
    assert allocated(lambda: torch.empty(100_000).fill_(1.0)) >= 400_000  # the measure measures

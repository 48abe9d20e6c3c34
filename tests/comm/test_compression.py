"""Rounding to 16 bits and error feedback, on one rank."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from allocations import torch_allocations
from rounding import ROUNDINGS, all_magnitudes, round_trip

from fedgan_mpi.comm.compression import UNIT_ROUNDOFF, Wire

DTYPES = list(ROUNDINGS)


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_are_rounded_to_nearest(dtype):
    numbers = torch.cat([all_magnitudes(), torch.tensor([0.0, -0.0, 1.0, 65504.0, 1e-7])])
    received = round_trip(Wire(dtype), numbers)
    assert np.array_equal(received.numpy(), ROUNDINGS[dtype](numbers.numpy()))
    assert not torch.equal(received, numbers)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_round_trip_is_idempotent_with_an_error_of_at_most_half_a_step(dtype):
    wire, numbers = Wire(dtype), torch.linspace(-9, 9, 200_001) ** 3
    once = round_trip(wire, numbers)
    assert torch.equal(round_trip(wire, once), once)
    # The step between neighbouring numbers is 2^(exponent - mantissa bits).
    exponents = numbers.abs().clamp(min=2.0**-14).log2().floor()
    step = 2 ** (exponents - {"bfloat16": 7, "float16": 10}[dtype])
    errors = (once - numbers).abs() / step
    assert errors.max() <= 0.5
    assert errors.max() > 0.49  # the wire has no finer step
    normal = numbers.abs() > 2.0**-14
    relative = ((once - numbers).abs() / numbers.abs())[normal]
    assert UNIT_ROUNDOFF[dtype] * 0.98 < relative.max() <= UNIT_ROUNDOFF[dtype]


@pytest.mark.parametrize("dtype", ["float32", *DTYPES])
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("length", [7, 300_000])
def test_rows_are_summed_in_order(dtype, count, length):
    wire, stream = Wire(dtype), np.random.default_rng(5)
    numbers = stream.normal(size=(count, length)) * 10.0 ** stream.integers(-3, 4, (count, 1))
    rows = torch.from_numpy(numbers.astype(np.float32))
    rows[:, 0] = -0.0
    expected = np.zeros(length, np.float32)
    for row in rows.numpy():
        expected += ROUNDINGS[dtype](row) if dtype != "float32" else row
    into = torch.full((length,), math.nan)
    wire.sum([wire.pack(row, number) for number, row in enumerate(rows)], into)
    assert np.array_equal(into.numpy(), expected)
    assert not into[:1].signbit().any()  # the sum starts from +0


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_stay_zeros_and_overflow_is_reported(dtype):
    wire = Wire(dtype)
    assert torch.equal(round_trip(wire, torch.zeros(5)), torch.zeros(5))
    received = round_trip(wire, torch.tensor([math.nan, math.inf, -math.inf]))
    assert received[0].isnan() and received[1:].tolist() == [math.inf, -math.inf]
    large = torch.tensor([1.0, -65600.0])
    stays_finite = bool(round_trip(wire, large).isfinite().all())
    assert wire.can_represent(large) == stays_finite == (dtype == "bfloat16")
    assert wire.can_represent(torch.tensor([65504.0, -65504.0]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_lossy_wire_sends_integers_of_half_the_size(dtype):
    wire, vector = Wire(dtype), torch.randn(1001)
    packed = wire.pack(vector, "test")
    assert not packed.is_floating_point()  # MPI cannot add them by mistake
    assert packed.nbytes == wire.nbytes(vector) == 2 * 1001
    assert wire.pack(vector, "test").data_ptr() == packed.data_ptr() != vector.data_ptr()


def test_a_float32_wire_sends_the_vector_itself():
    wire, vector = Wire("float32"), torch.randn(9)
    assert wire.pack(vector, "test") is vector
    assert (wire.nbytes(vector), wire.is_lossy, wire.unit_roundoff) == (36, False, 0.0)
    assert wire.pack_copy(vector, "test").data_ptr() != vector.data_ptr()


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_have_the_precision_of_the_vectors(dtype):
    """2048 times 2^-12 added to 1: a 16-bit sum would stay at 1."""
    wire, total = Wire(dtype), torch.ones(70_000)
    small = wire.pack(torch.full((70_000,), 2.0**-12), "test")
    for _ in range(2048):
        wire.add(small, total)
    assert torch.equal(total, torch.full((70_000,), 1.5))


@pytest.mark.parametrize("dtype", DTYPES)
def test_error_feedback_bounds_the_accumulated_error(dtype):
    """The vector moves within half a step. Without feedback the receiver never sees it move."""
    wire, without_feedback = Wire(dtype), Wire(dtype)
    vector, residual = torch.ones(300), torch.zeros(300)
    wire.enable_error_feedback(vector, residual)
    exact, received, received_without = (torch.zeros(300, dtype=torch.float64) for _ in range(3))
    step = 2 * UNIT_ROUNDOFF[dtype]
    for _ in range(64):
        vector.copy_(1 + 0.3 * step * torch.rand(300))
        exact += vector
        received += round_trip(wire, vector)
        received_without += round_trip(without_feedback, vector)
        assert residual.abs().max() <= step / 2 * 1.001
    assert (received - exact).abs().max() <= step / 2 * 1.001
    assert (received_without - exact).abs().min() > 2 * step


def test_a_slice_updates_its_own_part_of_the_residual():
    wire, vector, residual = Wire("bfloat16"), torch.full((100,), 1.001), torch.zeros(100)
    wire.enable_error_feedback(vector[20:], residual[20:])
    wire.pack(vector[30:50], "test")
    changed = residual != 0
    assert changed[30:50].all() and not changed[:30].any() and not changed[50:].any()
    other_vector = torch.full((100,), 1.001)
    wire.pack(other_vector, "other")
    assert torch.equal(changed, residual != 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_rounded_vector_and_its_residual_sum_to_the_exact_values(dtype):
    wire = Wire(dtype)
    vector, residual = torch.randn(50_000), 0.001 * torch.randn(50_000)
    exact = vector + residual
    wire.round_with_feedback(vector, residual)
    assert np.array_equal(vector.numpy(), ROUNDINGS[dtype](exact.numpy()))
    assert torch.equal(vector + residual, exact)
    assert torch.equal(round_trip(wire, vector), vector)  # packing rounds it no further


@pytest.mark.parametrize("dtype", ["float32", *DTYPES])
def test_a_second_call_allocates_no_memory(dtype):
    wire, vector, total = Wire(dtype), torch.randn(100_000), torch.zeros(100_000)
    fed_back, residual = torch.randn(100_000), torch.zeros(100_000)
    uplink_residual = torch.zeros(100_000)
    wire.enable_error_feedback(fed_back, residual)

    def use_wire():
        packed = wire.pack(vector, "down")
        wire.unpack(packed, vector)
        wire.add(packed, total)
        wire.pack(fed_back, "with residual")
        wire.pack_copy(vector, "copy")
        if wire.is_lossy:
            wire.round_with_feedback(vector, uplink_residual)

    use_wire()
    assert torch_allocations(use_wire) < 1000
    # The measurement sees an allocation.
    assert torch_allocations(lambda: torch.empty(100_000).fill_(1.0)) >= 400_000

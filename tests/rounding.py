"""Rounding to 16 bits by integer arithmetic, and vectors to test it on."""

from __future__ import annotations

import numpy as np
import torch

from fedgan_mpi.comm.compression import Wire


def to_bfloat16(numbers: np.ndarray) -> np.ndarray:
    """Round to nearest, ties to even, and keep the upper half of each float32's bits."""
    bits = numbers.astype(np.float32).view(np.uint32).astype(np.uint64)
    upper = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16
    return upper.astype(np.uint32).view(np.float32)


def to_float16(numbers: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return numbers.astype(np.float32).astype(np.float16).astype(np.float32)


ROUNDINGS = {"bfloat16": to_bfloat16, "float16": to_float16}


def rounded(vector: torch.Tensor, dtype: str) -> torch.Tensor:
    """Return the vector as a wire of that dtype delivers it."""
    if dtype not in ROUNDINGS:
        return vector
    return torch.from_numpy(ROUNDINGS[dtype](vector.numpy()))


def all_magnitudes(count: int = 200_000) -> torch.Tensor:
    """Return finite float32 numbers with random bits: every exponent, also subnormal numbers."""
    bits = np.random.default_rng(0).integers(0, 2**32, count, dtype=np.uint32)
    numbers = bits.view(np.float32)
    return torch.from_numpy(numbers[np.isfinite(numbers)].copy())


def round_trip(wire: Wire, vector: torch.Tensor) -> torch.Tensor:
    """Pack and unpack a vector."""
    received = torch.full_like(vector, 7.0)
    wire.unpack(wire.pack(vector, "test"), received)
    return received

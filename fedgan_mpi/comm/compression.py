"""Compression of vectors on the wire: full precision, or rounded to 16 bits with error feedback.

This module knows neither ranks nor MPI. Rounded numbers travel as int16, which holds their bits.
MPI must not add them: one library refuses a bfloat16 sum, another returns garbage. They are added
here, in the dtype of the vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_SLICE = 2**15  # numbers widened at a time; a slice fits in a core's cache
_BLOCK = 2**18  # numbers of all rows summed at a time; their sum fits in the last-level cache

UNIT_ROUNDOFF = {"bfloat16": 2.0**-8, "float16": 2.0**-11}
"""Largest relative error of rounding to nearest, for normal numbers."""


class Wire:
    """Packs vectors for the wire and unpacks them. Allocates one workspace per key."""

    def __init__(self, dtype: str) -> None:
        """dtype: "float32" and "float64" send vectors unchanged."""
        self.unit_roundoff = UNIT_ROUNDOFF.get(dtype, 0.0)
        """Largest relative rounding error; 0 if vectors travel unchanged."""
        self.largest = 65504.0 if dtype == "float16" else math.inf
        """Larger magnitudes become infinite."""
        self._dtype = dtype
        self._workspaces: dict[Hashable, Tensor] = {}
        self._residuals: list[tuple[Tensor, Tensor]] = []

    @property
    def is_lossy(self) -> bool:
        return self.unit_roundoff > 0

    def nbytes(self, vector: Tensor) -> int:
        """Return the bytes of a vector on the wire."""
        return vector.numel() * (2 if self.is_lossy else vector.element_size())

    def enable_error_feedback(self, vector: Tensor, residual: Tensor) -> None:
        """Keep the rounding errors of a vector and add them to its next values.

        Applies to every later `pack` of the vector or of a slice of it. residual: same length.
        Source: Seide et al. 2014; Karimireddy et al. 2019 (arXiv:1901.09847), algorithm 2.
        """
        self._residuals.append((vector, residual))

    def pack(self, vector: Tensor, key: Hashable, *, load: bool = True) -> Tensor:
        """Return the tensor to send, with the vector's shape and device.

        A lossy wire returns the workspace of `key`, otherwise the vector itself. load: fill the
        workspace with the vector's rounded values; False if MPI will overwrite it.
        """
        if not self.is_lossy:
            return vector
        bits = self.workspace(key, vector)
        if load:
            residual = self._residual_of(vector)
            if residual is None:
                self._as_numbers(bits).copy_(vector)
            else:
                residual.add_(vector)
                self._as_numbers(bits).copy_(residual)
                self._each_slice(bits, residual, lambda sent, rest: rest.sub_(sent))
        return bits

    def pack_copy(self, vector: Tensor, key: Hashable) -> Tensor:
        """Pack into a workspace that never aliases the vector."""
        if self.is_lossy:
            return self.pack(vector, key)
        return self.workspace(key, vector).copy_(vector)

    def unpack(self, packed: Tensor, vector: Tensor) -> None:
        """Overwrite the vector with received values."""
        if self.is_lossy:
            vector.copy_(self._as_numbers(packed))

    def add(self, packed: Tensor, into: Tensor) -> None:
        """Add a packed vector to `into`, in the dtype of `into`."""
        if self.is_lossy:
            self._each_slice(packed, into, lambda received, total: total.add_(received))
        else:
            into.add_(packed)

    def sum(self, rows: Sequence[Tensor], into: Tensor) -> None:
        """Overwrite `into` with the sum of packed rows, in their order and in the dtype of `into`.

        rows: 1-D, as long as `into`.
        """
        for start in range(0, into.numel(), _BLOCK):
            block = into[start : start + _BLOCK].zero_()
            for row in rows:
                self.add(row[start : start + _BLOCK], block)

    def round_with_feedback(self, vector: Tensor, residual: Tensor) -> None:
        """Overwrite `vector` with vector + residual, rounded as on the wire.

        Overwrites `residual` with the rounding error.
        """
        residual.add_(vector)
        bits = self.workspace("rounded", vector)
        self._as_numbers(bits).copy_(residual)
        self.unpack(bits, vector)
        residual.sub_(vector)

    def can_represent(self, vector: Tensor) -> bool:
        """Return whether a finite vector stays finite on the wire."""
        if math.isinf(self.largest):
            return True
        minimum, maximum = vector.aminmax()
        return max(-float(minimum), float(maximum)) <= self.largest

    def workspace(self, key: Hashable, like: Tensor) -> Tensor:
        """Return memory for a packed vector of that shape and device, cached by key."""
        import torch

        bits = self._workspaces.get(key)
        if bits is None or bits.shape != like.shape or bits.device != like.device:
            dtype = torch.int16 if self.is_lossy else like.dtype
            self._workspaces[key] = bits = torch.empty(like.shape, dtype=dtype, device=like.device)
        return bits

    def _as_numbers(self, bits: Tensor) -> Tensor:
        import torch

        dtype: torch.dtype = getattr(torch, self._dtype)
        return bits.view(dtype)

    def _residual_of(self, vector: Tensor) -> Tensor | None:
        address = vector.untyped_storage().data_ptr()
        for whole, residual in self._residuals:
            if whole.untyped_storage().data_ptr() == address:
                start = vector.storage_offset() - whole.storage_offset()
                return residual[start : start + vector.numel()]
        return None

    def _each_slice(
        self, packed: Tensor, other: Tensor, apply: Callable[[Tensor, Tensor], object]
    ) -> None:
        """Call `apply` with each widened slice of `packed` and the same slice of `other`.

        A single call would widen a copy of the whole vector.
        """
        numbers, length = self._as_numbers(packed).view(-1), self._slice_length(other)
        key = ("slice", length, other.dtype, other.device)
        if key not in self._workspaces:
            self._workspaces[key] = other.new_empty(length)
        for start in range(0, other.numel(), length):
            part = other.view(-1)[start : start + length]
            wide = self._workspaces[key][: part.numel()].copy_(numbers[start : start + length])
            apply(wide, part)

    @staticmethod
    def _slice_length(vector: Tensor) -> int:
        # On a GPU, kernel launches cost more than memory traffic.
        return max(1, vector.numel()) if vector.is_cuda else _SLICE

"""How numbers cross between ranks: as they are, or rounded to 16 bits.

Knows neither ranks nor MPI. Rounded numbers are handed on as 16-bit integers, their bits: MPI has
no sum for bfloat16 (one library refuses it, another adds up garbage), and none for bits that would
look like one. They are added up here, in the type of the vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_SLICE = 2**15  # numbers that are widened at a time: such a slice stays in a core's cache
_PART = 2**18  # numbers of rows that are added up at a time: their sum stays in a machine's cache

HALF_STEP = {"bfloat16": 2.0**-8, "float16": 2.0**-11}
"""The largest relative error of rounding to the nearest, above the smallest normal number."""


class Wire:
    """Vectors to what travels, and back. Its memory is taken once for each purpose."""

    def __init__(self, dtype: str) -> None:
        """dtype: float32 and float64 say that vectors travel as they are."""
        self.real_half = HALF_STEP.get(dtype, 0.0)
        """Largest relative error; 0: vectors travel as they are."""
        self.largest = 65504.0 if dtype == "float16" else math.inf
        """What is greater in magnitude becomes infinite."""
        self._dtype = dtype
        self._room: dict[Hashable, Tensor] = {}
        self._carried: list[tuple[Tensor, Tensor]] = []

    @property
    def rounds(self) -> bool:
        return self.real_half > 0

    def nbytes(self, vector: Tensor) -> int:
        """Bytes that a vector takes on the wire."""
        return vector.numel() * (2 if self.rounds else vector.element_size())

    def carry_over(self, vector: Tensor, residual: Tensor) -> None:
        """From now on, what rounding takes from this vector or a slice of it stays in the residual,
        of the same length, and is sent with the slice's next values (error feedback: Seide et al.
        2014; Karimireddy et al. 2019, arXiv:1901.09847, algorithm 2)."""
        self._carried.append((vector, residual))

    def pack(self, vector: Tensor, purpose: Hashable, *, load: bool = True) -> Tensor:
        """What travels, of the vector's shape and on its device: the vector itself, or memory of
        this purpose. load: with the vector's values; otherwise it is yet to be written."""
        if not self.rounds:
            return vector
        bits = self.workspace(purpose, vector)
        if load:
            residual = self._residual_of(vector)
            if residual is None:
                self._as_numbers(bits).copy_(vector)
            else:
                residual.add_(vector)
                self._as_numbers(bits).copy_(residual)
                self._each_slice(bits, residual, lambda sent, kept: kept.sub_(sent))
        return bits

    def copy(self, vector: Tensor, purpose: Hashable) -> Tensor:
        """`pack` into memory that is never the vector's own."""
        if self.rounds:
            return self.pack(vector, purpose)
        return self.workspace(purpose, vector).copy_(vector)

    def unpack(self, packed: Tensor, vector: Tensor) -> None:
        """Overwrite the vector with what has travelled."""
        if self.rounds:
            vector.copy_(self._as_numbers(packed))

    def add(self, packed: Tensor, into: Tensor) -> None:
        """Add to `into`, in its own type."""
        if self.rounds:
            self._each_slice(packed, into, lambda came, total: total.add_(came))
        else:
            into.add_(packed)

    def sum(self, rows: Sequence[Tensor], into: Tensor) -> None:
        """Overwrite `into` with the packed rows added up in their order, in its own type."""
        for start in range(0, into.numel(), _PART):
            part = into[start : start + _PART].zero_()
            for row in rows:
                self.add(row[start : start + _PART], part)

    def send_with(self, residual: Tensor, vector: Tensor) -> None:
        """Overwrite a vector with what will travel of itself and its residual, and the residual
        with the rest."""
        residual.add_(vector)
        bits = self.workspace("rounded", vector)
        self._as_numbers(bits).copy_(residual)
        self.unpack(bits, vector)
        residual.sub_(vector)

    def carries(self, vector: Tensor) -> bool:
        """Whether a finite vector stays finite."""
        if math.isinf(self.largest):
            return True
        least, most = vector.aminmax()
        return max(-float(least), float(most)) <= self.largest

    def workspace(self, purpose: Hashable, like: Tensor) -> Tensor:
        """Memory for a packed vector of that shape; the same one at every call."""
        import torch

        bits = self._room.get(purpose)
        if bits is None or bits.shape != like.shape or bits.device != like.device:
            dtype = torch.int16 if self.rounds else like.dtype
            self._room[purpose] = bits = torch.empty(like.shape, dtype=dtype, device=like.device)
        return bits

    def _as_numbers(self, bits: Tensor) -> Tensor:
        import torch

        numbers: torch.dtype = getattr(torch, self._dtype)
        return bits.view(numbers)

    def _residual_of(self, vector: Tensor) -> Tensor | None:
        place = vector.untyped_storage().data_ptr()
        for whole, residual in self._carried:
            if whole.untyped_storage().data_ptr() == place:
                start = vector.storage_offset() - whole.storage_offset()
                return residual[start : start + vector.numel()]
        return None

    def _each_slice(
        self, packed: Tensor, into: Tensor, act: Callable[[Tensor, Tensor], object]
    ) -> None:
        """Widen slice after slice, and act on it. One call would widen a copy of the whole."""
        numbers, length = self._as_numbers(packed).view(-1), self._slice_length(into)
        key = ("slice", length, into.dtype, into.device)
        if key not in self._room:
            self._room[key] = into.new_empty(length)
        for start in range(0, into.numel(), length):
            part = into.view(-1)[start : start + length]
            wide = self._room[key][: part.numel()].copy_(numbers[start : start + length])
            act(wide, part)

    @staticmethod
    def _slice_length(vector: Tensor) -> int:
        # On a GPU, launches cost more than memory.
        return max(1, vector.numel()) if vector.is_cuda else _SLICE

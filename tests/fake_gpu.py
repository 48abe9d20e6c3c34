"""A fake GPU in host memory, for tests of staging and of the link.

Copies and kernels are queued and run as late as possible. A copy runs when a later call waits for
it. A kernel runs when the copy stream waits for it or the host synchronizes. Code that reads a
buffer too early finds the old values, as with a real stream.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class FakeGpu:
    """Implements `Accelerator` and records the order of its calls in `calls`."""

    def __init__(self, identity: str = "") -> None:
        self.identity = identity
        self.calls: list[str] = []
        self.buffers: list[Tensor] = []
        """All pinned buffers."""
        self._vectors: dict[int, Tensor] = {}
        self._copies: list[tuple[int, Tensor, Tensor]] = []
        self._kernels: list[tuple[Tensor, Tensor]] = []
        self._last_copy = 0

    def vector(self, values: Tensor) -> Tensor:
        """Return a copy of the values in this GPU's memory."""
        return self.adopt(values.clone())

    def adopt(self, vector: Tensor) -> Tensor:
        """Treat a vector's memory as this GPU's from now on."""
        self._vectors[vector.untyped_storage().data_ptr()] = vector  # keeps the address in use
        return vector

    def compute(self, vector: Tensor, values: Tensor) -> None:
        """Queue a kernel that overwrites the vector."""
        self._kernels.append((vector, values))

    def owns(self, vector: Tensor) -> bool:
        return vector.untyped_storage().data_ptr() in self._vectors

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return self.adopt(torch.empty(tuple(shape), dtype=dtype))

    def pinned(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        self.calls.append("pinned")
        self.buffers.append(torch.zeros(shape, dtype=dtype))
        return self.buffers[-1]

    def copies_wait_for_compute(self) -> None:
        self.calls.append("copies wait")
        self._run_kernels()

    def copy(self, to: Tensor, source: Tensor) -> int:
        self._last_copy += 1
        self.calls.append(f"copy {self._last_copy}")
        self._copies.append((self._last_copy, to, source))
        return self._last_copy

    def wait(self, event: int) -> None:
        self.calls.append(f"wait {event}")
        while self._copies and self._copies[0][0] <= event:
            _, to, source = self._copies.pop(0)
            to.copy_(source)

    def compute_waits_for_copies(self) -> None:
        self.calls.append("compute waits")

    def synchronize(self) -> None:
        self.calls.append("synchronize")
        self._run_kernels()

    @property
    def idle(self) -> bool:
        """Whether no copy is queued."""
        return not self._copies

    def _run_kernels(self) -> None:
        for vector, values in self._kernels:
            vector.copy_(values)
        self._kernels = []

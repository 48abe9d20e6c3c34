"""A GPU as the link sees it, made of ordinary memory: copies happen late, and not in host order.

A copy is queued, and done only when somebody waits for it (or for a later one). Whoever reads a
buffer too early finds what stood there before, as on a real stream.
"""

from __future__ import annotations

import torch
from torch import Tensor


class FakeGpu:
    """Owns tensors made by `vector`; notes the order of calls in `calls`."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self._owned: set[int] = set()
        self._queue: list[tuple[int, Tensor, Tensor]] = []
        self._computing: list[tuple[Tensor, Tensor]] = []
        self._copies = 0
        self._follows = self._led = True
        self.buffers: list[Tensor] = []

    def vector(self, values: Tensor) -> Tensor:
        """A vector in this GPU's memory."""
        vector = values.clone()
        self._owned.add(vector.untyped_storage().data_ptr())
        self._keep = [*getattr(self, "_keep", []), vector]
        return vector

    def compute(self, vector: Tensor, values: Tensor) -> None:
        """Queue a kernel that overwrites a vector: done once somebody makes the copies follow, or
        synchronizes."""
        self._computing.append((vector, values))

    def owns(self, vector: Tensor) -> bool:
        return vector.untyped_storage().data_ptr() in self._owned

    def pinned(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        self.calls.append("pinned")
        self.buffers.append(torch.zeros(shape, dtype=dtype))
        return self.buffers[-1]

    def follow(self) -> None:
        self.calls.append("follow")
        self._finish_computing()

    def copy(self, to: Tensor, source: Tensor) -> int:
        self._copies += 1
        self.calls.append(f"copy {self._copies}")
        self._queue.append((self._copies, to, source))
        return self._copies

    def wait(self, copied: int) -> None:
        self.calls.append(f"wait {copied}")
        while self._queue and self._queue[0][0] <= copied:
            _, to, source = self._queue.pop(0)
            to.copy_(source)

    def lead(self) -> None:
        self.calls.append("lead")

    def synchronize(self) -> None:
        self.calls.append("synchronize")
        self._finish_computing()

    @property
    def idle(self) -> bool:
        """Whether nothing is queued."""
        return not self._queue

    def _finish_computing(self) -> None:
        for vector, values in self._computing:
            vector.copy_(values)
        self._computing = []

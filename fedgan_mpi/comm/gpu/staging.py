"""Staging of GPU vectors through pinned host memory, chunk by chunk.

MPI ignores CUDA streams. A buffer is handed out only after all work queued for it has finished.
While MPI sends one chunk, the GPU copies the next one. This module knows neither ranks nor MPI.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from fedgan_mpi.hardware.gpu import gpu_identity

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CHUNK_BYTES = 2**21
"""About 80 µs on PCIe 4, while a collective needs about 10 µs to start."""


class Accelerator(Protocol):
    """Operations that staging needs from a GPU. Copies run in order on a stream of their own."""

    identity: str
    """Equal for two ranks if they share a GPU."""

    def owns(self, vector: Tensor) -> bool:
        """Return whether the vector is in this GPU's memory."""

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Allocate GPU memory."""

    def pinned(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Allocate page-locked host memory for asynchronous copies."""

    def copies_wait_for_compute(self) -> None:
        """Make later copies wait for the kernels queued so far."""

    def copy(self, to: Tensor, source: Tensor) -> Any:
        """Queue a copy and return its event for `wait`."""

    def wait(self, event: Any) -> None:
        """Block the host until the copy has finished."""

    def compute_waits_for_copies(self) -> None:
        """Make later kernels wait for the copies queued so far."""

    def synchronize(self) -> None:
        """Block the host until all queued kernels have finished."""


class Cuda:
    """The current GPU of this process, of NVIDIA or of AMD."""

    def __init__(self) -> None:
        import torch

        self._cuda = torch.cuda
        self._empty = torch.empty
        self._stream = torch.cuda.Stream()
        self.identity = gpu_identity(torch.device("cuda", torch.cuda.current_device()))

    def owns(self, vector: Tensor) -> bool:
        return vector.is_cuda

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return self._empty(tuple(shape), dtype=dtype, device="cuda")

    def pinned(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        return self._empty(shape, dtype=dtype, pin_memory=True)

    def copies_wait_for_compute(self) -> None:
        self._stream.wait_stream(self._cuda.current_stream())

    def copy(self, to: Tensor, source: Tensor) -> torch.cuda.Event:
        with self._cuda.stream(self._stream):
            to.copy_(source, non_blocking=True)
            return self._stream.record_event()

    def wait(self, event: torch.cuda.Event) -> None:
        event.synchronize()

    def compute_waits_for_copies(self) -> None:
        self._cuda.current_stream().wait_stream(self._stream)

    def synchronize(self) -> None:
        self._cuda.current_stream().synchronize()


class Staging:
    """Maps vectors to memory that MPI may read and write."""

    def __init__(self, gpu: Accelerator | None, *, direct: bool) -> None:
        """gpu: None if this rank has no GPU; all ranks then use equal chunks. direct:
        MPI accesses vectors in place."""
        self.gpu, self.direct = gpu, direct
        self._buffers: dict[Hashable, Tensor] = {}
        self._workspaces: dict[Hashable, Tensor] = {}

    @property
    def sends_gpu_memory(self) -> bool:
        """Whether MPI reads and writes this GPU's memory."""
        return self.direct and self.gpu is not None

    def mpi_buffer(self, vector: Tensor, key: Hashable, *, load: bool) -> Tensor:
        """Return memory of the vector's shape that MPI may access.

        This is the vector itself or a pinned buffer. load: the buffer holds the vector's values.
        """
        gpu = self._gpu_of(vector)
        if gpu is None:
            return vector
        if self.direct:
            gpu.synchronize()
            return vector
        buffer = _buffer(gpu, self._buffers, key, vector)
        if load:
            gpu.copies_wait_for_compute()
            gpu.wait(gpu.copy(buffer, vector))
        return buffer

    def copy_back(self, vector: Tensor, host: Tensor) -> None:
        """Overwrite the vector with its `mpi_buffer`, after MPI has written there."""
        gpu = self._gpu_of(vector)
        if gpu is not None and not self.direct:
            gpu.copies_wait_for_compute()
            event = gpu.copy(vector, host)
            gpu.compute_waits_for_copies()
            gpu.wait(event)  # The buffer may be reused now.

    def outgoing(self, vector: Tensor, key: Hashable = "out") -> Iterator[Tensor]:
        """Yield a 1-D vector's values chunk by chunk.

        Each chunk is valid until the next one is requested.
        """
        gpu, chunks = self._gpu_of(vector), self._chunks(vector)
        if gpu is None or self.direct:
            yield from self._in_place(gpu, chunks)
            return
        buffers = self._double_buffer(gpu, key, chunks[0])
        gpu.copies_wait_for_compute()
        event = gpu.copy(buffers[0], chunks[0])
        for k, chunk in enumerate(chunks):
            current = event
            if k + 1 < len(chunks):
                following = chunks[k + 1]
                event = gpu.copy(buffers[(k + 1) % 2][: len(following)], following)
            gpu.wait(current)
            yield buffers[k % 2][: len(chunk)]

    def incoming(self, vector: Tensor, key: Hashable = "in") -> Iterator[Tensor]:
        """Yield one buffer per chunk of a 1-D vector; the caller fills each.

        The vector is overwritten during the loop. The loop must run to its end.
        """
        gpu, chunks = self._gpu_of(vector), self._chunks(vector)
        if gpu is None or self.direct:
            yield from self._in_place(gpu, chunks)
            return
        buffers = self._double_buffer(gpu, key, chunks[0])
        events: list[Any] = []
        gpu.copies_wait_for_compute()  # Queued kernels may still read the old values.
        for k, chunk in enumerate(chunks):
            if k >= 2:
                gpu.wait(events[k - 2])  # The buffer may be reused now.
            yield buffers[k % 2][: len(chunk)]
            events.append(gpu.copy(chunk, buffers[k % 2][: len(chunk)]))
        gpu.compute_waits_for_copies()
        gpu.wait(events[-1])  # Both buffers may be reused now.

    def workspace(self, key: Hashable, shape: Sequence[int], like: Tensor, dtype: Any) -> Tensor:
        """Return memory on the device of `like`, cached by key, shape and dtype."""
        key = (key, tuple(shape), dtype, like.device)
        if key not in self._workspaces:
            self._workspaces[key] = like.new_empty(tuple(shape), dtype=dtype)
        return self._workspaces[key]

    def _gpu_of(self, vector: Tensor) -> Accelerator | None:
        return self.gpu if self.gpu is not None and self.gpu.owns(vector) else None

    def _chunks(self, vector: Tensor) -> tuple[Tensor, ...]:
        """Split alike on every rank, with and without a GPU: the ranks' collectives must match."""
        return (vector,) if self.direct else vector.split(CHUNK_BYTES // vector.element_size())

    @staticmethod
    def _in_place(gpu: Accelerator | None, chunks: Sequence[Tensor]) -> Iterator[Tensor]:
        if gpu is not None:
            gpu.synchronize()
        yield from chunks

    def _double_buffer(self, gpu: Accelerator, key: Hashable, like: Tensor) -> list[Tensor]:
        return [_buffer(gpu, self._buffers, (key, n, like.dtype), like) for n in range(2)]


def _buffer(
    gpu: Accelerator, buffers: dict[Hashable, Tensor], key: Hashable, like: Tensor
) -> Tensor:
    """Return pinned memory of that shape and dtype, cached by key."""
    buffer = buffers.get(key)
    if buffer is None or buffer.shape != like.shape or buffer.dtype != like.dtype:
        buffers[key] = buffer = gpu.pinned(like.shape, like.dtype)
    return buffer

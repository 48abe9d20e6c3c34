"""Between a GPU's memory and the memory that MPI reads: pinned buffers, a piece at a time.

MPI knows nothing of CUDA's streams, so nothing is handed out before what was queued for it has
happened. While one piece is sent the next is already on its way. Knows neither ranks nor MPI.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PIECE = 2**21  # bytes: 80 µs of a PCIe 4 bus, against some 10 µs that a collective takes to begin


class Accelerator(Protocol):
    """What staging asks of a GPU. Copies are queued on a stream of their own, one after the
    other."""

    def owns(self, vector: Tensor) -> bool:
        """Whether a vector lies in its memory."""

    def pinned(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """New host memory that it can copy from and to while the processor does something else."""

    def follow(self) -> None:
        """Have the copies queued from now on wait for what has been computed."""

    def copy(self, to: Tensor, source: Tensor) -> Any:
        """Queue a copy; gives what `wait` takes."""

    def wait(self, copied: Any) -> None:
        """Return once a copy has happened."""

    def lead(self) -> None:
        """Have what is computed from now on wait for the copies queued so far."""

    def synchronize(self) -> None:
        """Return once all that was computed is in memory."""


class Cuda:
    """An NVIDIA GPU, that of this process."""

    def __init__(self) -> None:
        import torch

        self._cuda = torch.cuda
        self._empty = torch.empty
        self._stream = torch.cuda.Stream()

    def owns(self, vector: Tensor) -> bool:
        return vector.is_cuda

    def pinned(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        return self._empty(shape, dtype=dtype, pin_memory=True)

    def follow(self) -> None:
        self._stream.wait_stream(self._cuda.current_stream())

    def copy(self, to: Tensor, source: Tensor) -> torch.cuda.Event:
        with self._cuda.stream(self._stream):
            to.copy_(source, non_blocking=True)
            return self._stream.record_event()

    def wait(self, copied: torch.cuda.Event) -> None:
        copied.synchronize()

    def lead(self) -> None:
        self._cuda.current_stream().wait_stream(self._stream)

    def synchronize(self) -> None:
        self._cuda.current_stream().synchronize()


class Staging:
    """The road between one GPU's vectors and memory that MPI may read and write."""

    def __init__(self, gpu: Accelerator | None, *, direct: bool) -> None:
        """gpu: None where this rank has none; its pieces are those of ranks that have one. direct:
        MPI reads vectors where they lie."""
        self.gpu, self.direct = gpu, direct
        self._buffers: dict[Hashable, Tensor] = {}
        self._rooms: dict[Hashable, Tensor] = {}

    def whole(self, vector: Tensor, purpose: Hashable, *, load: bool) -> Tensor:
        """Memory of the vector's shape for MPI, with its values where `load` says so."""
        gpu = self._gpu_of(vector)
        if gpu is None:
            return vector
        if self.direct:
            gpu.synchronize()
            return vector
        buffer = _buffer(gpu, self._buffers, purpose, vector)
        if load:
            gpu.follow()
            gpu.wait(gpu.copy(buffer, vector))
        return buffer

    def copy_back(self, vector: Tensor, host: Tensor) -> None:
        """Bring what MPI wrote into `whole`'s memory to its vector."""
        gpu = self._gpu_of(vector)
        if gpu is not None and not self.direct:
            gpu.follow()
            copied = gpu.copy(vector, host)
            gpu.lead()
            gpu.wait(copied)  # the buffer is free again

    def outgoing(self, vector: Tensor, purpose: Hashable = "out") -> Iterator[Tensor]:
        """A 1-D vector's values piece by piece, each for as long as the loop stays with it."""
        gpu, pieces = self._gpu_of(vector), self._pieces(vector)
        if gpu is None or self.direct:
            yield from self._as_they_lie(gpu, pieces)
            return
        buffers = self._pair(gpu, purpose, pieces[0])
        gpu.follow()
        copied = gpu.copy(buffers[0], pieces[0])
        for k, piece in enumerate(pieces):
            arrived = copied
            if k + 1 < len(pieces):
                following = pieces[k + 1]
                copied = gpu.copy(buffers[(k + 1) % 2][: len(following)], following)
            gpu.wait(arrived)
            yield buffers[k % 2][: len(piece)]

    def incoming(self, vector: Tensor, purpose: Hashable = "in") -> Iterator[Tensor]:
        """Memory for a 1-D vector piece by piece, to be filled by the loop that asks for it and to
        be asked for to the end: the vector is overwritten meanwhile."""
        gpu, pieces = self._gpu_of(vector), self._pieces(vector)
        if gpu is None or self.direct:
            yield from self._as_they_lie(gpu, pieces)
            return
        buffers = self._pair(gpu, purpose, pieces[0])
        copied: list[Any] = []
        gpu.follow()  # something may still be computed from the old values
        for k, piece in enumerate(pieces):
            if k >= 2:
                gpu.wait(copied[k - 2])  # it has left the buffer
            yield buffers[k % 2][: len(piece)]
            copied.append(gpu.copy(piece, buffers[k % 2][: len(piece)]))
        gpu.lead()
        gpu.wait(copied[-1])  # and the buffers are free again

    def workspace(
        self, purpose: Hashable, shape: Sequence[int], like: Tensor, dtype: Any
    ) -> Tensor:
        """Memory where `like` lies; the same at every call."""
        key = (purpose, tuple(shape), dtype, like.device)
        if key not in self._rooms:
            self._rooms[key] = like.new_empty(tuple(shape), dtype=dtype)
        return self._rooms[key]

    def _gpu_of(self, vector: Tensor) -> Accelerator | None:
        return self.gpu if self.gpu is not None and self.gpu.owns(vector) else None

    def _pieces(self, vector: Tensor) -> tuple[Tensor, ...]:
        """Alike on all ranks, those without a GPU too."""
        return (vector,) if self.direct else vector.split(PIECE // vector.element_size())

    @staticmethod
    def _as_they_lie(gpu: Accelerator | None, pieces: Sequence[Tensor]) -> Iterator[Tensor]:
        if gpu is not None:
            gpu.synchronize()
        yield from pieces

    def _pair(self, gpu: Accelerator, purpose: Hashable, like: Tensor) -> list[Tensor]:
        return [_buffer(gpu, self._buffers, (purpose, n, like.dtype), like) for n in range(2)]


def _buffer(
    gpu: Accelerator, buffers: dict[Hashable, Tensor], purpose: Hashable, like: Tensor
) -> Tensor:
    """Pinned memory of that shape; the same one at every call."""
    buffer = buffers.get(purpose)
    if buffer is None or buffer.shape != like.shape or buffer.dtype != like.dtype:
        buffers[purpose] = buffer = gpu.pinned(like.shape, like.dtype)
    return buffer

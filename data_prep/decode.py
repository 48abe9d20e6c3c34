"""Decodes blocks of images, in this process or in a pool of processes. ranks.py adds MPI ranks.

Every method returns the blocks in the requested order. A pool has at most two blocks per process
in progress, which bounds memory for any size of data set.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing.connection import wait

import numpy as np
from numpy.typing import NDArray

from data_prep.resize import crop_and_resize
from data_prep.sources.base import BadImage, Indices, Source
from fedgan_mpi.errors import UserError

_BLOCK_BYTES = 2**20
_MAX_BLOCK_IMAGES = 256


@dataclass(frozen=True, kw_only=True)
class DecodedBlock:
    """The readable images of a block, and one error message for each unreadable image."""

    images: NDArray[np.uint8]
    indices: Indices
    """Index of each readable image in the source."""
    errors: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """Decodes the images of a source to one shape."""

    source: Source
    size: int | None
    """Height and width in pixels. None: keep the source's size."""
    image_shape: tuple[int, int, int]

    def __call__(self, indices: Indices) -> DecodedBlock:
        """Decode one block of images."""
        images = np.empty((len(indices), *self.image_shape), np.uint8)
        readable: list[int] = []
        errors: list[str] = []
        with warnings.catch_warnings():
            # After a warning, a library reads the image correctly or raises an error.
            warnings.simplefilter("ignore")
            for index in indices.tolist():
                try:
                    image = self.source.image(index)
                except BadImage as error:
                    errors.append(str(error))
                    continue
                images[len(readable)] = crop_and_resize(image, self.size, self.image_shape[0])
                readable.append(index)
        return DecodedBlock(
            images=images[: len(readable)], indices=np.array(readable, np.int64), errors=errors
        )

    def blocks(self, indices: Indices) -> list[Indices]:
        """Split indices into consecutive blocks of about 1 MiB of pixels."""
        images = _BLOCK_BYTES // int(np.prod(self.image_shape))
        size = min(max(images, 1), _MAX_BLOCK_IMAGES)
        return [indices[start : start + size] for start in range(0, len(indices), size)]


Decode = Callable[[Decoder, Iterable[Indices]], Iterator[DecodedBlock]]
"""Decodes blocks of indices and yields the results in order."""


def decode_serially(decoder: Decoder, blocks: Iterable[Indices]) -> Iterator[DecodedBlock]:
    """Decode in this process. Suits small data, and programs that must not fork."""
    return map(decoder, blocks)


def decode_in_processes(processes: int) -> Decode:
    """Return a function that decodes in a pool of processes. The calling process only writes."""

    def decode(decoder: Decoder, blocks: Iterable[Indices]) -> Iterator[DecodedBlock]:
        # Forked processes share a source's arrays; spawned ones would each copy them.
        context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
        pool = ProcessPoolExecutor(processes, context, _initialize_worker, (decoder,))
        remaining = iter(blocks)
        # Submitting now starts the processes before the caller opens a file, which a later fork
        # would inherit.
        pending = deque(
            pool.submit(_decode_in_worker, block) for block in islice(remaining, 2 * processes)
        )
        return _in_order(pool, pending, remaining)

    return decode


def _in_order(
    pool: ProcessPoolExecutor, pending: deque[Future[DecodedBlock]], remaining: Iterator[Indices]
) -> Iterator[DecodedBlock]:
    """Yield results in order and submit one new block for each result."""
    try:
        while pending:
            block = pending.popleft().result()
            pending += [pool.submit(_decode_in_worker, indices) for indices in islice(remaining, 1)]
            yield block
    except BrokenProcessPool:
        raise UserError(
            "a decoding process was killed, perhaps for lack of memory; use fewer --processes"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_worker_decoder: Decoder | None = None
"""The decoder of a worker process. Sent once, because sending it with each block is slow."""


def _initialize_worker(decoder: Decoder) -> None:
    global _worker_decoder
    _worker_decoder = decoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """End this worker when its parent ends. A killed parent cannot stop its workers itself."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _decode_in_worker(indices: Indices) -> DecodedBlock:
    assert _worker_decoder is not None
    return _worker_decoder(indices)

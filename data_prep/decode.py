"""Decodes blocks of images, in this process or in a pool of processes. ranks.py adds MPI ranks.

Every method returns the blocks in the requested order. A pool has at most two blocks per process
in progress, which bounds memory for any size of data set.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from itertools import islice

from data_prep.decoder import DecodedBlock, Decoder
from data_prep.sources.base import Indices
from data_prep.worker import Workers

__all__ = [
    "Decode",
    "DecodedBlock",
    "Decoder",
    "available_cores",
    "decode_in_processes",
    "decode_serially",
]

Decode = Callable[[Decoder, Iterable[Indices]], Iterator[DecodedBlock]]
"""Decodes blocks of indices and yields the results in order."""
_Pending = deque[tuple[Indices, Future[DecodedBlock]]]


def decode_serially(decoder: Decoder, blocks: Iterable[Indices]) -> Iterator[DecodedBlock]:
    """Decode in this process. Suits small data, and programs that must not fork.

    There is no limit of memory, and none of time for a decoder that never returns to Python.
    """
    return map(decoder, blocks)


def decode_in_processes(processes: int) -> Decode:
    """Return a function that decodes in a pool of processes. The calling process only writes."""

    def decode(decoder: Decoder, blocks: Iterable[Indices]) -> Iterator[DecodedBlock]:
        workers = Workers(decoder, processes)
        remaining = iter(blocks)
        pending: _Pending = deque()
        # Submitting now starts the processes before the caller opens a file, which a later fork
        # would inherit.
        _submit(workers, pending, remaining, 2 * processes)
        return _in_order(workers, pending, remaining, decoder, processes)

    return decode


def _in_order(
    workers: Workers,
    pending: _Pending,
    remaining: Iterator[Indices],
    decoder: Decoder,
    processes: int,
) -> Iterator[DecodedBlock]:
    """Yield results in order and submit one new block for each result."""
    try:
        while pending:
            block, future = pending.popleft()
            try:
                decoded = future.result()
            except BrokenProcessPool:
                workers.close()
                for each in (block, *(waiting for waiting, _ in pending)):
                    yield workers.decode_alone(each)
                pending.clear()
                workers = Workers(decoder, processes)
                _submit(workers, pending, remaining, 2 * processes)
                continue
            _submit(workers, pending, remaining, 1)
            yield decoded
    finally:
        workers.close()


def _submit(workers: Workers, pending: _Pending, remaining: Iterator[Indices], blocks: int) -> None:
    pending += [(block, workers.submit(block)) for block in islice(remaining, blocks)]


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

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
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing.connection import wait

from data_prep.decoder import DecodedBlock, Decoder
from data_prep.sources.base import Indices
from fedgan_mpi.errors import UserError

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

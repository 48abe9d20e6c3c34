"""Decodes blocks of images: here, in all cores of this machine, or (ranks.py) in all ranks.

Whoever decodes, blocks come back in the order they were asked for, and at most two a process are
under way, so memory stays bounded however large the data set is.
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

from data_prep.images import fit
from data_prep.sources.base import BadImage, Indices, Source
from fedgan_mpi.errors import UserError

_BLOCK_BYTES = 2**20
_BLOCK_IMAGES = 256


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """A block: the images that could be read, and a sentence for each that could not."""

    images: NDArray[np.uint8]
    indices: Indices
    bad: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """A source's images in the form that was asked for."""

    source: Source
    size: int | None
    image_shape: tuple[int, int, int]

    def __call__(self, indices: Indices) -> Decoded:
        images = np.empty((len(indices), *self.image_shape), np.uint8)
        good: list[int] = []
        bad: list[str] = []
        with warnings.catch_warnings():
            # What a library warns of, it then reads all the same, or refuses.
            warnings.simplefilter("ignore")
            for index in indices.tolist():
                try:
                    image = self.source.image(index)
                except BadImage as error:
                    bad.append(str(error))
                    continue
                images[len(good)] = fit(image, self.size, self.image_shape[0])
                good.append(index)
        return Decoded(images=images[: len(good)], indices=np.array(good, np.int64), bad=bad)

    def blocks(self, indices: Indices) -> list[Indices]:
        """Indices in blocks of about a megabyte, in order."""
        images = _BLOCK_BYTES // int(np.prod(self.image_shape))
        size = min(max(images, 1), _BLOCK_IMAGES)
        return [indices[start : start + size] for start in range(0, len(indices), size)]


Decode = Callable[[Decoder, Iterable[Indices]], Iterator[Decoded]]
"""Decodes blocks in order, somewhere."""


def decode_here(decoder: Decoder, blocks: Iterable[Indices]) -> Iterator[Decoded]:
    """In this process; for small data, and wherever a fork would be unwise."""
    return map(decoder, blocks)


def decode_in_processes(processes: int) -> Decode:
    """In so many processes beside this one, which only writes."""

    def decode(decoder: Decoder, blocks: Iterable[Indices]) -> Iterator[Decoded]:
        # Forked processes share a source's arrays, where others would need a copy each.
        context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
        pool = ProcessPoolExecutor(processes, context, _begin, (decoder,))
        remaining = iter(blocks)
        # Begun at once: a process forked later would inherit the file that is being written.
        waiting = deque(
            pool.submit(_decode_remembered, block) for block in islice(remaining, 2 * processes)
        )
        return _in_order(pool, waiting, remaining)

    return decode


def _in_order(
    pool: ProcessPoolExecutor, waiting: deque[Future[Decoded]], remaining: Iterator[Indices]
) -> Iterator[Decoded]:
    """What comes back, oldest first, with a new block under way for each that is taken."""
    try:
        while waiting:
            done = waiting.popleft().result()
            waiting += [pool.submit(_decode_remembered, block) for block in islice(remaining, 1)]
            yield done
    except BrokenProcessPool:
        raise UserError(
            "a decoding process was killed, perhaps for lack of memory; "
            "try again with fewer --processes"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_remembered: Decoder | None = None  # a process's own; sent once rather than with every block


def _begin(decoder: Decoder) -> None:
    global _remembered
    _remembered = decoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process decides what Ctrl-C means
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    """A killed parent cannot stop its processes, which would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _decode_remembered(indices: Indices) -> Decoded:
    assert _remembered is not None
    return _remembered(indices)

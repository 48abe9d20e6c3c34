"""Decoding processes. If one is killed, the image that it was decoding is named.

Knows neither the order of blocks nor MPI.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing.connection import wait
from typing import Any

from data_prep.decoder import DecodedBlock, Decoder
from data_prep.limits import limit_memory
from data_prep.sources.base import Indices
from fedgan_mpi.errors import UserError

# Forked processes share a source's arrays; spawned ones each copy them.
FORK = "fork" if sys.platform == "linux" else "spawn"
_IDLE = -1


class Workers:
    """Some processes that decode blocks of one source."""

    def __init__(self, decoder: Decoder, processes: int, method: str = FORK) -> None:
        """Start the processes with the first block. method: how, as multiprocessing calls it."""
        context: Any = multiprocessing.get_context(method)
        self._decoder, self._method = decoder, method
        self._current = context.RawValue("q", _IDLE)
        self._pool = ProcessPoolExecutor(processes, context, _initialize, (decoder, self._current))

    def submit(self, block: Indices) -> Future[DecodedBlock]:
        """Begin to decode a block. The result raises BrokenProcessPool if a process was killed."""
        try:
            return self._pool.submit(_decode, block)
        except BrokenProcessPool as error:
            failed: Future[DecodedBlock] = Future()
            failed.set_exception(error)
            return failed

    def close(self) -> None:
        """End the processes, after the blocks that they are decoding."""
        self._pool.shutdown(cancel_futures=True)

    def decode_alone(self, block: Indices) -> DecodedBlock:
        """Decode a block in a separate process, and skip each image that kills the process.

        These count as unreadable. Raises UserError if the process is killed between two images.
        """
        errors: list[str] = []
        while True:
            alone = Workers(self._decoder, 1, self._method)
            try:
                decoded = alone.submit(block).result()
                return replace(decoded, errors=[*errors, *decoded.errors])
            except BrokenProcessPool:
                index = alone._current.value
                if index == _IDLE:
                    raise UserError(
                        "a decoding process was killed, perhaps for lack of memory; use fewer "
                        "--processes"
                    ) from None
                errors.append(self._decoder.describe_kill(index))
                block = block[block != index]
            finally:
                alone.close()


class OneWorker:
    """A process that decodes one block after the other, for a rank of an MPI job."""

    def __init__(self, decoder: Decoder) -> None:
        """Start the process. A fork of a process that uses MPI could disturb its network."""
        self._decoder = decoder
        self._workers = Workers(decoder, 1, "spawn")

    def __call__(self, block: Indices) -> DecodedBlock:
        """Decode a block. Raises UserError."""
        try:
            return self._workers.submit(block).result()
        except BrokenProcessPool:
            self._workers.close()
            self._workers = Workers(self._decoder, 1, "spawn")
            return self._workers.decode_alone(block)

    def close(self) -> None:
        """End the process."""
        self._workers.close()


_decoder: Decoder | None = None
"""The decoder of this worker process. Sent once, because sending it with each block is slow."""
_current: Any = None
"""Shared with the parent: the index of the image that is being decoded."""


def _initialize(decoder: Decoder, current: Any) -> None:
    global _decoder, _current
    _decoder, _current = decoder, current
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    limit_memory(decoder.limits.memory)


def _exit_with_parent() -> None:
    """End this worker when its parent ends. A killed parent cannot stop its workers itself."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _decode(block: Indices) -> DecodedBlock:
    assert _decoder is not None
    try:
        return _decoder(block, started=_note)
    finally:
        _current.value = _IDLE


def _note(index: int) -> None:
    _current.value = index

"""Decodes blocks on all ranks of an MPI job. The only module of this package that uses MPI.

Rank 0 reads the tables, partitions the data and writes the shards. The other ranks only decode, and
need access to the image files alone. Blocks travel in waves of one per rank.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any

from mpi4py import MPI

from data_prep.decode import DecodedBlock, Decoder
from data_prep.sources.base import ArraySource, Indices
from data_prep.worker import OneWorker
from fedgan_mpi.comm.launcher import world_size_problem
from fedgan_mpi.comm.polling import barrier
from fedgan_mpi.errors import UserError

_Work = Callable[[Indices], DecodedBlock]
_Result = DecodedBlock | UserError | None
"""The contribution of a rank to a wave. None: there was no block for it."""


class RankPool:
    """The ranks of the job. Rank 0 calls `decode` and `close`; the others call `work`."""

    def __init__(self) -> None:
        """Raise UserError if MPI sees fewer ranks than the launcher started."""
        self._world = MPI.COMM_WORLD
        if (problem := world_size_problem(self._world.size)) is not None:
            raise UserError(problem)
        self.is_first = self._world.rank == 0

    def decode(self, decoder: Decoder, blocks: Iterable[Indices]) -> Iterator[DecodedBlock]:
        """Decode blocks on all ranks and yield them in order. Called on rank 0."""
        self._broadcast(pickle.dumps(decoder))  # fails before the other ranks wait for it
        remaining = iter(blocks)
        with _worker(decoder) as work:
            while wave := list(islice(remaining, self._world.size)):
                self._broadcast(wave)
                for result in self._gather(_attempt(work, wave[0])):
                    if isinstance(result, UserError):
                        raise result
                    if result is not None:
                        yield result

    def close(self) -> None:
        """Release the other ranks from `work`. Called on rank 0, between two waves."""
        self._broadcast(None)

    def work(self) -> None:
        """Decode blocks until rank 0 calls `close`. Called on all ranks but 0."""
        rank = self._world.rank
        with ExitStack() as stack:
            work: _Work | None = None
            # Rank 0 broadcasts a decoder, then waves of blocks, and finally None.
            while (message := self._broadcast(None)) is not None:
                if isinstance(message, bytes):
                    stack.close()
                    work = stack.enter_context(_worker(pickle.loads(message)))
                    continue
                assert work is not None
                self._gather(_attempt(work, message[rank]) if rank < len(message) else None)

    def abort(self) -> None:
        """End all ranks after an unexpected error on this one."""
        self._world.Abort(1)

    def _broadcast(self, message: Any) -> Any:
        """Return rank 0's message on every rank. Collective."""
        barrier(self._world)  # MPI would wait at full load on a core that decodes
        return self._world.bcast(message)

    def _gather(self, block: _Result) -> list[_Result]:
        """Return every rank's result, in the order of ranks, on rank 0. Collective."""
        barrier(self._world)
        return self._world.gather(block) or []


@contextmanager
def _worker(decoder: Decoder) -> Iterator[_Work]:
    """Yield a function that decodes blocks. If they come from files, it uses a separate process."""
    if isinstance(decoder.source, ArraySource):
        yield decoder
        return
    worker = OneWorker(decoder)
    try:
        yield worker
    finally:
        worker.close()


def _attempt(work: _Work, block: Indices) -> _Result:
    """Decode a block. Return a UserError, so that rank 0 raises it between two waves."""
    try:
        return work(block)
    except UserError as error:
        return error

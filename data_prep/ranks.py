"""Decodes blocks in all ranks of an MPI world; the only file here that knows MPI.

Rank 0 reads the data set's tables, cuts it and writes the shards; in waves of one block a rank, all
ranks decode. The other ranks need to see the images' files, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from mpi4py import MPI

from data_prep.decode import Decoded, Decoder
from data_prep.sources.base import Indices
from fedgan_mpi.comm.launcher import world_size_problem
from fedgan_mpi.comm.polling import barrier
from fedgan_mpi.errors import UserError


class Ranks:
    """The world of ranks. Rank 0 calls `decode` and `dismiss`, the others `help`."""

    def __init__(self) -> None:
        """Raises UserError where the launcher's ranks do not find each other."""
        self._world = MPI.COMM_WORLD
        if (problem := world_size_problem(self._world.size)) is not None:
            raise UserError(problem)
        self.is_first = self._world.rank == 0

    def decode(self, decoder: Decoder, blocks: Iterable[Indices]) -> Iterator[Decoded]:
        """Rank 0 alone: the blocks in order, decoded by all."""
        self._tell(decoder)
        remaining = iter(blocks)
        while wave := list(islice(remaining, self._world.size)):
            self._tell(wave)
            decoded = self._collect(decoder(wave[0]))
            yield from (block for block in decoded if block is not None)

    def dismiss(self) -> None:
        """Rank 0 alone: let the others leave, between two waves."""
        self._tell(None)

    def help(self) -> None:
        """All but rank 0: decode until dismissed."""
        decoder = None
        # What rank 0 tells is a decoder, then waves of blocks, at last None.
        while (told := self._tell(None)) is not None:
            if isinstance(told, Decoder):
                decoder = told
                continue
            assert decoder is not None
            self._collect(decoder(told[self._world.rank]) if self._world.rank < len(told) else None)

    def abort(self) -> None:
        """End every rank, where this one alone met what nobody expected."""
        self._world.Abort(1)

    def _tell(self, what: Any) -> Any:
        """Collective: what rank 0 says, on every rank."""
        barrier(self._world)  # MPI's own waiting would burn the core that the others decode on
        return self._world.bcast(what)

    def _collect(self, mine: Decoded | None) -> list[Decoded | None]:
        """Collective: every rank's block, in order, on rank 0."""
        barrier(self._world)
        return self._world.gather(mine) or []

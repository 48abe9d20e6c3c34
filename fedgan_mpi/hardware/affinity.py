"""CPU affinity for one machine with more ranks than cores.

The Linux scheduler balances too slowly for steps of a few milliseconds. So each rank is pinned to a
core. It stays pinned while it waits, and wakes on the core that it computes on. While the server
computes, all other ranks wait for its result, so no other rank uses its core. `Affinity` follows
the verbs of the link: the server computes from the average of a round to the next broadcast.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress


class Affinity:
    """The core of this rank's main thread, by the phase of a round."""

    def __init__(self, cores: Sequence[int], *, rank: int) -> None:
        """cores: those that all ranks share, the server's first; none: affinity stays unchanged."""
        self._cores, self._rank = list(cores), rank
        self._pinned = False

    @contextmanager
    def pinned(self) -> Iterator[None]:
        """Follow the phases of rounds inside the block; use all cores afterwards."""
        self._pinned = len(self._cores) > 1
        self._use_phase(server_computes=False)
        try:
            yield
        finally:
            self._pinned = False
            use_cores(self._cores)

    @contextmanager
    def unpinned(self) -> Iterator[None]:
        """Use all cores inside the block, for work between rounds that all ranks share."""
        pinned, self._pinned = self._pinned, False
        use_cores(self._cores)
        try:
            yield
        finally:
            self._pinned = pinned
            self._use_phase(server_computes=False)

    def on_verb(self, verb: str) -> None:
        """Subscriber of the link."""
        if verb == "average":
            self._use_phase(server_computes=True)
        elif verb == "broadcast":
            self._use_phase(server_computes=False)

    def _use_phase(self, *, server_computes: bool) -> None:
        if not self._pinned:
            return
        rank, cores = self._rank, len(self._cores)
        if rank > 0 and server_computes:
            use_cores([self._cores[1 + (rank - 1) % (cores - 1)]])
        else:
            use_cores([self._cores[rank % cores]])


def use_cores(cores: Sequence[int]) -> None:
    """Restrict the calling thread to these cores; no cores: leave it unchanged.

    A thread inherits the affinity of the thread that starts it.
    """
    if not cores:
        return
    for wanted in (set(cores), set(range(4096))):  # a container's cores may have changed
        with suppress(OSError):
            if os.sched_getaffinity(0) != wanted:
                os.sched_setaffinity(0, wanted)
            return

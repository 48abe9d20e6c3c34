"""Which cores a rank computes on, where ranks outnumber the cores of their one machine.

The operating system wakes a rank where there is room at that moment and moves it late: two ranks
then share a core for milliseconds while another one idles. Here ranks that compute side by side
have a core each, or the same number of ranks on each. Waiting, and all other threads, go anywhere.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from fedgan_mpi.cluster.link import Link

_ROOM = 1.25
"""How much longer than the server others may compute beside it before they get its core, too. More
than 1, as a core that is shared is shared unevenly."""


class Cores:
    """This rank's places, one context a kind of work."""

    def __init__(self, link: Link, pin: bool) -> None:
        # The threads of a pool would stay where the pin was when they were made.
        self._cores = link.shared_cores if pin and torch.get_num_threads() == 1 else []
        self._link = link
        self._seconds_beside = 0.0
        self._late = False  # work beside the server goes on when the next round has come

    @contextmanager
    def spread(self, devices: Sequence[int]) -> Iterator[None]:
        """For equal work of these devices at the same time: as many ranks on each core, where they
        host as many of them."""
        cores, mine = self._cores, self._link.rank
        per_rank = self._hosts(devices)
        ranks = sorted(per_rank)
        even = len(set(per_rank.values())) == 1 and len(ranks) % len(cores) == 0
        pins = even and mine in ranks and not self._late
        with self._on([cores[ranks.index(mine) % len(cores)]] if pins else []):
            yield

    @contextmanager
    def of_server(self) -> Iterator[None]:
        """For what all others wait for."""
        with self._on(self._cores[:1]):
            yield

    @contextmanager
    def beside_server(self, devices: Sequence[int], seconds_server: float) -> Iterator[None]:
        """For work of the ranks of these devices that can wait, while the server computes for about
        so long: not on its core, unless the other cores would be at it much longer."""
        others = self._cores[1:]
        each = self._seconds_beside * len(self._hosts(devices)) / max(1, len(others))
        start = time.thread_time()
        self._late = each > _ROOM * seconds_server
        with self._on([] if self._late else others):
            yield
        self._seconds_beside = time.thread_time() - start

    def _hosts(self, devices: Sequence[int]) -> Counter[int]:
        """Rank -> how many of them it hosts. Not asked where nothing is pinned: on a large machine
        that would be many."""
        return Counter(filter(None, map(self._link.rank_of, devices))) if self._cores else Counter()

    @contextmanager
    def _on(self, cores: Sequence[int]) -> Iterator[None]:
        """This thread on these cores, and afterwards on all again; of none, where it likes."""
        if not cores:
            yield
            return
        everywhere = self._cores
        self._move(cores)
        try:
            yield
        finally:
            self._move(everywhere)

    def _move(self, cores: Sequence[int]) -> None:
        try:
            os.sched_setaffinity(0, cores)
        except OSError:  # a container's cores may change
            self._cores = []

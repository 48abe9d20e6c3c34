"""Which cores a rank computes on, where ranks outnumber the cores of their one machine.

The operating system wakes a rank where there is room at that moment and moves it late: two ranks
then share a core for milliseconds while another one idles. Here a rank that waits already has the
core that it will compute on, so that it neither wakes behind another's work nor takes the server's
core; and a core's last rank takes over one from a core that has several. A thread that is begun in
rounds inherits its place, and must call `run_anywhere`.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import torch

from fedgan_mpi.comm.link import Link

_PLACE, _COMPUTES, _TOOK, _THREAD, _NAMESPACE, _HELD = range(6)


class Affinity:
    """This rank's place, and what it does for the others'."""

    def __init__(self, link: Link, pin: bool, *, server_computes_too: bool = False) -> None:
        """Collective. server_computes_too: at the same time as the devices."""
        self._cores: Sequence[int] = link.shared_cores
        # The threads of a pool would stay where the pin was when they were made.
        self._pins = bool(self._cores) and pin and torch.get_num_threads() == 1
        self._is_held = self._is_beside = False
        self._always_beside = server_computes_too
        if not self._cores:
            return
        # A line a rank: its place, by number in `_cores`, whether it computes there, nanoseconds
        # that its last step took, of a device's beside the server, the name of its thread, which
        # means something in its own container only, and whether it is in rounds and has a place.
        self._lines, self._mine = link.shared_lines(), link.rank
        line = self._lines[link.rank]
        line[_THREAD], line[_NAMESPACE] = threading.get_native_id(), _namespace()
        link.barrier()
        # Two jobs of this kind need not have their servers on the same core.
        first = int(self._lines[0, _THREAD]) % len(self._cores)
        self._cores = [*self._cores[first:], *self._cores[:first]]
        here = line[_NAMESPACE]
        self._moves_others = bool(here and (self._lines[:, _NAMESPACE] == here).all())
        self._place = 0

    @contextmanager
    def held(self) -> Iterator[None]:
        """Rounds: this thread has a place in them, among all cores at first, none afterwards."""
        self._hold(self._pins)
        self._stand(beside=self._always_beside)
        try:
            yield
        finally:
            self._hold(False)
            if self._pins:
                run_anywhere(self._cores)

    @contextmanager
    def released(self) -> Iterator[None]:
        """Between rounds: work that all ranks share, and the operating system deals out."""
        held = self._is_held
        self._hold(False)
        if held:
            run_anywhere(self._cores)
        try:
            yield
        finally:
            self._hold(held and self._pins)
            self._stand(beside=self._always_beside)

    def stand_together(self) -> None:
        """From now on, this rank waits and computes as one of all on all cores, but for the
        server's where it computes at the same time.

        To go to a core takes a turn on it. While the server computes, which all wait for, nobody
        goes to its core: it moves them when it is done."""
        self._stand(beside=self._always_beside)
        if not (self._is_held and self._mine == 0 and self._moves_others):
            return
        for rank in range(1, len(self._lines)):
            place = self._place_of(rank, beside=self._always_beside)
            waits = self._lines[rank, _HELD] and not self._lines[rank, _COMPUTES]
            if place == 0 and waits:
                self._move(rank, place)

    def stand_beside_server(self) -> None:
        """From now on, a device rank waits and computes on the cores that the server leaves."""
        self._stand(beside=True)

    @contextmanager
    def work(self, *, is_step: bool = True) -> Iterator[None]:
        """What this rank computes, at its place or on a core that has nothing to do; afterwards
        another rank may have its core. is_step: of the method, and not beside it."""
        if not self._is_held:
            yield
            return
        self._begin()
        start = time.thread_time_ns()
        try:
            yield
        finally:
            if is_step and self._is_beside:
                self._lines[self._mine, _TOOK] = time.thread_time_ns() - start
            self._end()

    def has_room_beside_server(self, before: int) -> bool:
        """Whether there is time for one more device's work beside the server, after so many others'
        of this kind. By the quickest that they last were, since one may have been held up."""
        if not self._pins:
            return True
        server, *devices = self._lines[:, _TOOK].tolist()
        one = min(filter(None, devices), default=0)
        return not server or before * one < server * (len(self._cores) - 1)

    def _begin(self) -> None:
        place, computing = self._place, set(self._computing().values())
        if place in computing:
            # The server's core may seem idle when it is about to come.
            open_ones = range(int(self._is_beside), len(self._cores))
            place = next((core for core in open_ones if core not in computing), place)
        self._lines[self._mine, :2] = place, 1
        self._go_to(place)

    def _end(self) -> None:
        mine = self._lines[self._mine]
        mine[_COMPUTES], place = 0, int(mine[_PLACE])
        computing = self._computing()
        if not computing or place in computing.values():
            return
        fullest, there = Counter(computing.values()).most_common(1)[0]
        if there > 1 and self._pins and self._moves_others:
            self._take_over(max(rank for rank, at in computing.items() if at == fullest), place)

    def _take_over(self, rank: int, place: int) -> None:
        """It may just end, too: each puts itself in its place before the next work."""
        self._lines[rank, _PLACE] = place
        self._move(rank, place)

    def _move(self, rank: int, place: int) -> None:
        try:
            os.sched_setaffinity(int(self._lines[rank, _THREAD]), {self._cores[place]})
        except OSError:  # it is of the dead, or the cores have changed
            self._moves_others = False

    def _computing(self) -> dict[int, int]:
        """Rank -> place, of those that compute."""
        lines = self._lines[:, :2].tolist()
        return {rank: place for rank, (place, computes) in enumerate(lines) if computes}

    def _hold(self, held: bool) -> None:
        self._is_held = held
        if self._cores:
            self._lines[self._mine, _HELD] = held

    def _stand(self, *, beside: bool) -> None:
        """Go where this rank waits now; not to the server's core while the server computes there,
        if it is to be moved then."""
        self._is_beside = beside
        if self._is_held:
            self._place = self._place_of(self._mine, beside=beside)
            is_taken = self._place == 0 and self._mine > 0 and self._lines[0, _COMPUTES]
            if not (is_taken and self._moves_others):
                self._go_to(self._place)

    def _place_of(self, rank: int, *, beside: bool) -> int:
        """Where a rank waits; the server on the first. Who shares that core is woken after one that
        does not, since it takes the core from the server, which has yet to wake the others."""
        if rank == 0 or not beside:
            return rank % len(self._cores)
        return 1 + (rank - 1) % (len(self._cores) - 1)

    def _go_to(self, place: int) -> None:
        core = {self._cores[place]}
        try:
            if os.sched_getaffinity(0) != core:  # to ask takes far less time
                os.sched_setaffinity(0, core)
        except OSError:  # a container's cores may change
            self._pins = False
            self._hold(False)
            self._lines[self._mine, _COMPUTES] = 0
            run_anywhere(self._cores)


def run_anywhere(cores: Sequence[int]) -> None:
    """This thread from now on, on any of these cores; of none, where it likes."""
    if not cores:
        return
    for wanted in (cores, range(4096)):  # they may have changed; the kernel leaves out what is not
        with suppress(OSError):
            os.sched_setaffinity(0, wanted)
            return


def _namespace() -> int:
    """In which threads' names are this process's; 0 where nobody knows."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0

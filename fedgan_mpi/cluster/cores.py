"""Which cores a rank computes on, where ranks outnumber the cores of their one machine.

The operating system wakes a rank where there is room at that moment and moves it late: two ranks
then share a core for milliseconds while another one idles. Here a rank that waits already has the
core that it will compute on, so that it neither wakes behind another's work nor takes the server's
core; and a core's last rank takes over one from a core that has several. All other threads go
anywhere.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from fedgan_mpi.cluster.link import Link

_PLACE, _COMPUTES, _TOOK, _THREAD, _NAMESPACE = range(5)


class Cores:
    """This rank's place, and what it does for the others'."""

    def __init__(self, link: Link, pin: bool, *, server_computes_too: bool = False) -> None:
        """Collective. server_computes_too: at the same time as the devices."""
        self._cores: Sequence[int] = link.shared_cores
        self._mine = link.rank
        self._place = self._together = self._beside = 0
        self._is_held = self._is_beside = False
        self._always_beside = server_computes_too
        if not self._cores:
            return
        # A line a rank: its place, by number in `_cores`, whether it computes there, nanoseconds
        # that its last work took, of a device's beside the server, and the name of its thread,
        # which means something in its own container only.
        self._lines = link.shared_lines()
        line = self._lines[link.rank]
        line[_NAMESPACE] = os.stat("/proc/self/ns/pid").st_ino
        line[_THREAD] = threading.get_native_id()
        link.barrier()
        # Two jobs of this kind need not have their servers on the same core.
        first = int(self._lines[0, _THREAD]) % len(self._cores)
        self._cores = [*self._cores[first:], *self._cores[:first]]
        self._moves_others = bool((self._lines[:, _NAMESPACE] == line[_NAMESPACE]).all())
        if not link.is_server:
            self._beside = 1 + (link.rank - 1) % (len(self._cores) - 1)
            self._together = (link.rank - 1) % len(self._cores)
        # The threads of a pool would stay where the pin was when they were made.
        if not pin or torch.get_num_threads() > 1:
            self._cores = []

    @contextmanager
    def held(self) -> Iterator[None]:
        """Rounds: this thread has a place in them, among all cores at first, none afterwards."""
        self._is_held = True
        self.stand_together()
        try:
            yield
        finally:
            self._is_held = False
            run_anywhere(self._cores)

    def stand_together(self) -> None:
        """From now on, this rank waits and computes as one of all on all cores, but for the
        server's where it computes at the same time."""
        self._is_beside = self._always_beside
        self._stand(self._beside if self._is_beside else self._together)

    def stand_beside_server(self) -> None:
        """From now on, a device rank waits and computes on the cores that the server leaves."""
        self._is_beside = True
        self._stand(self._beside)

    @contextmanager
    def work(self, *, is_step: bool = True) -> Iterator[None]:
        """What this rank computes, at its place or on a core that has nothing to do; afterwards
        another rank may have its core. is_step: of the method, and not beside it."""
        if not self._cores or not self._is_held:
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
        if not self._cores:
            return True
        server, *devices = self._lines[:, _TOOK].tolist()
        one = min(filter(None, devices), default=0)
        return not server or before * one < server * (len(self._cores) - 1)

    def _begin(self) -> None:
        place, computing = self._place, set(self._computing().values())
        # Beside the server, a core may seem idle that it is about to take.
        if place in computing and not self._is_beside:
            place = next((core for core in range(len(self._cores)) if core not in computing), place)
        self._lines[self._mine, :2] = place, 1
        self._go_to(place)

    def _end(self) -> None:
        mine = self._lines[self._mine]
        mine[_COMPUTES], place = 0, int(mine[_PLACE])
        computing = self._computing()
        if not self._moves_others or place in computing.values():
            return
        # Whom it moves may just end, too: each puts itself in its place before the next work.
        crowds = [core for core, there in Counter(computing.values()).most_common(1) if there > 1]
        for last in [rank for rank, core in computing.items() if core in crowds][-1:]:
            self._lines[last, _PLACE] = place
            try:
                os.sched_setaffinity(int(self._lines[last, _THREAD]), {self._cores[place]})
            except OSError:  # it is of the dead, or another user's
                self._moves_others = False

    def _computing(self) -> dict[int, int]:
        """Rank -> place, of those that compute."""
        lines = self._lines[:, :2].tolist()
        return {rank: place for rank, (place, computes) in enumerate(lines) if computes}

    def _stand(self, place: int) -> None:
        self._place = place
        if self._cores and self._is_held:
            self._go_to(place)

    def _go_to(self, place: int) -> None:
        core = {self._cores[place]}
        try:
            if os.sched_getaffinity(0) != core:  # to ask takes far less time
                os.sched_setaffinity(0, core)
        except OSError:  # a container's cores may change
            run_anywhere(self._cores)
            self._cores = []


def run_anywhere(cores: Sequence[int]) -> None:
    """This thread from now on, on any of these cores; of none, where it likes."""
    if cores:
        try:
            os.sched_setaffinity(0, cores)
        except OSError:
            os.sched_setaffinity(0, range(os.cpu_count() or 1))

"""The timeline of rounds whose uploads may arrive late (`algorithm.staleness`).

It replaces the clock's duration of single rounds, which assumes that a round waits for all of its
participants. Every rank computes the same timeline.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from fedgan_mpi.wireless.clock import Clock


@dataclass(frozen=True, kw_only=True)
class Arrivals:
    """Uploads of one round. Devices are in increasing order."""

    in_flight: list[int]
    """Devices that started in this round or before, without those merged before it."""
    arrived: list[int]
    """Those of them that are merged at the end of this round."""
    end: float
    """End of the round, in seconds since the start of training."""


class Timeline:
    """Rounds 0, 1, … of a run in the simulated cell.

    A round starts devices that are not in flight. It waits for half of the uploads in flight, and
    for every one that started `staleness` rounds before. In the parallel schedule it also waits for
    the server's steps. All uploads that have arrived by then are merged.
    """

    def __init__(
        self,
        clock: Clock,
        participants: Callable[[int], Sequence[int]],
        *,
        staleness: int,
        is_parallel: bool,
        down: int,
        up: int,
    ) -> None:
        """participants: t -> devices that start in round t. It may call `busy`.
        down, up: numbers that a device receives and sends."""
        self._clock, self._participants = clock, participants
        self._staleness, self._is_parallel = staleness, is_parallel
        self._down, self._up = down, up
        self._rounds: list[Arrivals] = []
        self._started: dict[int, int] = {}  # device in flight -> its round
        self._ready: dict[int, float] = {}  # device in flight -> arrival of its upload

    def busy(self, t: int) -> list[int]:
        """Return the devices that are still in flight when round t starts."""
        if t == 0:
            return []
        before = self.round(t - 1)
        return [k for k in before.in_flight if k not in before.arrived]

    def round(self, t: int) -> Arrivals:
        """Return the arrivals of round t."""
        while len(self._rounds) <= t:
            self._rounds.append(self._simulate(len(self._rounds)))
        return self._rounds[t]

    def seconds(
        self,
        t: int,
        participants: Sequence[int],
        measured: tuple[Mapping[int, float], float] | None = None,
    ) -> float:
        """Return the duration of round t, as a clock does."""
        return self.round(t).end - (self.round(t - 1).end if t else 0.0)

    def _simulate(self, t: int) -> Arrivals:
        start = self._rounds[-1].end if t else 0.0
        participants = self._participants(t)
        in_flight = sorted([*self._started, *participants])
        # The devices in flight share the band; the broadcast reaches those that start.
        radio = self._clock.radio_round(in_flight)
        received = start + replace(radio, participants=participants).broadcast(self._down)
        ready = {k: received + radio.device_seconds[k] for k in participants}
        self._ready |= radio.arrivals(ready, self._up)
        self._started |= dict.fromkeys(participants, t)
        due = [self._ready[k] for k in in_flight if self._started[k] <= t - self._staleness]
        half = sorted(self._ready.values())[(len(in_flight) - 1) // 2]
        merged = max([half, *due])
        if self._is_parallel:
            merged = max(merged, received + radio.server_seconds)
        arrived = [k for k in in_flight if self._ready[k] <= merged]
        for k in arrived:
            del self._ready[k], self._started[k]
        end = merged + replace(radio, participants=arrived).averaging(self._up)
        end += 0.0 if self._is_parallel else radio.server_seconds
        return Arrivals(in_flight=in_flight, arrived=arrived, end=end)

"""Early starts of local rounds, while a rank would otherwise wait (`training.overlap`).

A device needs φ_{t+1} for the real half of its first step, but not θ_{t+1}, which the server still
trains. The server needs θ_t for its first fakes, but not φ_{t+1}, which the devices still train.
Early starts change no bit of any result.
"""

from __future__ import annotations

import time

from fedgan_mpi.algorithms.base import Algorithm


class Overlap:
    """One rank's early starts."""

    def __init__(self, algorithm: Algorithm) -> None:
        self._algorithm = algorithm
        self._enabled = algorithm.training.overlap
        self.seconds_server = 0.0
        """Duration of the server's steps on G in the last round; 0 if unknown."""
        self._cpu_seconds = 0.0  # of the fastest early start
        link = algorithm.link
        link.prefetches &= self._enabled
        # On shared cores, the server would take time from the devices.
        overlaps = self._enabled and link.size > 1 and algorithm.trains_generator_last
        if overlaps and not link.shared_cores:
            link.subscribers.append(self._on_verb)

    def start_device(self, t: int) -> None:
        """Start local round t of the first participant hosted here, if D was prefetched.

        One per rank: it uses the rank's pair of networks.
        """
        algorithm = self._algorithm
        participation = algorithm.rank_state.participation
        if (
            not self._enabled
            or algorithm.rank_state.pair.adaptive is not None  # p of round t is not known yet
            or t >= algorithm.training.rounds
            or not algorithm.link.has_prefetched(algorithm.flat.discriminator)
            or not participation.is_known_in_advance
        ):
            return
        present = participation.participants(t)
        device = next((d for k, d in algorithm.devices.items() if k in present), None)
        if (
            device is not None
            and algorithm.training.discriminator_steps > 0
            and self._has_time(present.index(device.index))
        ):
            algorithm.before_local_rounds(t)
            start, cpu_start = time.perf_counter(), time.thread_time()
            with algorithm.timed("seconds_local"):
                device.early_start.start(device.discriminator_round(t))
            spent = time.thread_time() - cpu_start
            self._cpu_seconds = min(self._cpu_seconds or spent, spent)
            algorithm.metrics.add_device_seconds(device.index, time.perf_counter() - start)

    def _has_time(self, before: int) -> bool:
        """Whether one more early start fits beside the server's steps, after `before` others.

        A rank that starts too late would delay its own round. Who starts changes no result.
        """
        cores = len(self._algorithm.link.shared_cores)
        if not cores or not self.seconds_server:
            return True
        if before * self._cpu_seconds < self.seconds_server * (cores - 1):
            return True
        self._cpu_seconds *= 0.99  # so that one slow measurement does not count for ever
        return False

    def _on_verb(self, verb: str) -> None:
        """Start the server's round of G before it waits for the devices."""
        server = self._algorithm.server
        if verb == "average" and server is not None and not server.early_start.has_started:
            with self._algorithm.timed("seconds_server"):
                server.start_early()

"""Choice between two roads by timing: the vectors of a verb are sent on both, and checked."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from mpi4py import MPI

from fedgan_mpi.comm.gpu.staging import Staging

REPEATS = 5
SECONDS = 60.0
"""Of one transfer, until the job ends."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One transfer of a verb, by the code and with the size of the rounds."""

    nbytes: int
    """Of one vector on the wire."""
    prepare: Callable[[], None]
    """Writes this rank's vector; finished on return."""
    move: Callable[[Staging], None]
    """Sends and receives; the received values are there on return."""
    has_arrived: Callable[[], bool]
    """Whether this rank has the right values."""


def measure(
    probe: Probe,
    roads: Sequence[Staging],
    comm: MPI.Comm,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float | None]:
    """Collective. Return the seconds of a transfer on each road, the same on every rank.

    Of a transfer the slowest rank counts, and of several, in turn on all roads, the fastest. None:
    wrong values have arrived on this road.
    """
    fastest: list[float | None] = [float("inf")] * len(roads)
    for turn in range(REPEATS + 1):
        for n, road in enumerate(roads):
            probe.prepare()
            comm.Barrier()
            start = clock()
            probe.move(road)
            seconds = comm.allreduce(clock() - start, MPI.MAX)
            right = comm.allreduce(probe.has_arrived(), MPI.LAND)
            before = fastest[n]
            if not right or before is None:
                fastest[n] = None
            elif turn > 0:  # the first transfer opens connections and allocates memory
                fastest[n] = min(before, seconds)
    return fastest


def fastest_road(seconds: Sequence[float | None]) -> int | None:
    """Return the index of the fastest road with the right values; None if no road has them."""
    valid = [(each, n) for n, each in enumerate(seconds) if each is not None]
    return min(valid)[1] if valid else None


@contextmanager
def time_limit(seconds: float, end: Callable[[str], None]) -> Iterator[None]:
    """Call `end` with the rest of a sentence if the block takes longer or fails.

    The block waits for other ranks, which cannot learn of a failure there.
    """
    timer = threading.Timer(seconds, end, [f"did not end within {seconds:g} s"])
    timer.daemon = True
    timer.start()
    try:
        yield
    except Exception as error:
        end(f"failed: {' '.join(str(error).split())}")
        raise
    finally:
        timer.cancel()

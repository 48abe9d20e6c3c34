"""Waiting with short sleeps between tests. MPI's own waiting spins and occupies the core."""

from __future__ import annotations

import time

from mpi4py import MPI

_INTERVAL = 2e-4  # seconds; longer sleeps add up along the tree of a collective


def barrier(comm: MPI.Comm) -> None:
    """Collective. Return after all ranks have entered."""
    request = comm.Ibarrier()
    while not request.Test():
        time.sleep(_INTERVAL)


def wait_all(requests: list[MPI.Request]) -> None:
    """Return after all requests have completed."""
    while not MPI.Request.Testall(requests):
        time.sleep(_INTERVAL)

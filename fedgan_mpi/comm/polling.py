"""Waiting for other ranks without taking the core that they compute on: MPI's own waiting spins."""

from __future__ import annotations

import time

from mpi4py import MPI

_NAP = 2e-4  # seconds; longer naps add up along the tree of a collective


def barrier(comm: MPI.Comm) -> None:
    """Collective. Return once all ranks have come here."""
    token = comm.Ibarrier()
    while not token.Test():
        time.sleep(_NAP)


def wait_all(requests: list[MPI.Request]) -> None:
    """Return once all these transfers are done."""
    while not MPI.Request.Testall(requests):
        time.sleep(_NAP)

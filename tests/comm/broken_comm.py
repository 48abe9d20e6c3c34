"""A communicator that fails with large vectors, as MPI may with GPU memory."""

from __future__ import annotations

from typing import Any

import torch
from mpi4py import MPI

LARGEST = 2**16
"""Bytes of the largest vector that still arrives."""


class BrokenComm:
    """Passes every call to a communicator, but one operation fails on one rank if its vector is
    longer than `largest` bytes.

    how: "raises"; "hangs", takes part never; "wrong", delivers a wrong number.
    """

    def __init__(
        self, comm: Any, operation: str, how: str, *, rank: int = 1, largest: int = LARGEST
    ) -> None:
        self._comm, self._operation, self._how, self._rank = comm, operation, how, rank
        self._largest = largest

    def Dup(self) -> BrokenComm:
        return BrokenComm(
            self._comm.Dup(), self._operation, self._how, rank=self._rank, largest=self._largest
        )

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._comm, name)
        if name != self._operation or self._comm.rank != self._rank:
            return attribute

        def fail(*arguments: Any, **named: Any) -> Any:
            vectors = [each[0] if isinstance(each, list) else each for each in arguments]
            vectors = [each for each in vectors if isinstance(each, torch.Tensor)]
            if max(each.nbytes for each in vectors) <= self._largest:
                return attribute(*arguments, **named)
            if self._how == "raises":
                raise MPI.Exception(MPI.ERR_BUFFER)
            if self._how == "hangs":
                return _Never()
            return _Spoiled(attribute(*arguments, **named), vectors[-1])

        return fail


class _Never:
    def Test(self) -> bool:
        return False


class _Spoiled:
    """A request after which one received number is wrong."""

    def __init__(self, request: MPI.Request, vector: torch.Tensor) -> None:
        self._request, self._vector = request, vector

    def Test(self) -> bool:
        if not self._request.Test():
            return False
        self._vector[len(self._vector) // 2] = -1
        return True

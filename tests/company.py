"""Whole jobs among ranks that stand already: nothing starts, so that a job waits for no imports.

The first rank conducts: it runs a test, whose jobs the others take part in.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

from mpi4py import MPI

from fedgan_mpi.__main__ import main
from fedgan_mpi.comm import link

RANKS = min(4, MPI.COMM_WORLD.size)
"""As many as a job has, at most."""


class Company:
    """All ranks of a test job; a communicator of its own, so that a failed test leaves nothing."""

    def __init__(self) -> None:
        self._world = MPI.COMM_WORLD.Dup()
        self._at_work = False

    def run(self, ranks: int, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """The conductor's: a job of the first so many ranks, as `mpirun` would run one."""
        told = self._tell((ranks, arguments, cwd))
        status, out, err = (list(each) for each in zip(*self._take_part(*told), strict=True))
        return subprocess.CompletedProcess(arguments, max(status), "".join(out), "".join(err))

    def follow(self) -> None:
        """The others': take part until the conductor has no more jobs."""
        while (told := self._tell(None)) is not None:
            self._take_part(*told)

    def dismiss(self) -> None:
        if not self._at_work:  # else they will never hear it
            self._tell(None)

    def _tell(self, what: Any) -> Any:
        self._rest()
        return self._world.bcast(what)

    def _take_part(self, ranks: int, arguments: tuple[str, ...], cwd: Path) -> Any:
        self._at_work = True
        inside = self._world.rank < ranks
        part = self._world.Split(0 if inside else 1, self._world.rank)
        told = _job(part, list(arguments), cwd) if inside else (0, "", "")
        self._rest()
        self._at_work = False
        return self._world.gather(told)

    def _rest(self) -> None:
        """Wait for all without a core, which those that still work need."""
        arrived = self._world.Ibarrier()
        while not arrived.Test():
            time.sleep(1e-3)


def _job(part: MPI.Comm, arguments: list[str], cwd: Path) -> tuple[int, str, str]:
    """One rank's part of a job. Gives its exit status and what it printed."""
    here, out, err = os.getcwd(), StringIO(), StringIO()
    links: list[link.Link] = []

    class OfPart(link.Link):
        def __init__(self) -> None:
            super().__init__(part)
            links.append(self)

        def check_world(self) -> None:
            """The launcher started more ranks, and that is all right here."""

        def abort(self, code: int = 1) -> NoReturn:
            print(out.getvalue(), err.getvalue(), file=sys.__stderr__, flush=True)
            raise AssertionError("a rank would end the job now")

    os.chdir(cwd)
    try:
        with mock.patch.object(link, "Link", OfPart), redirect_stdout(out), redirect_stderr(err):
            status = main(arguments)
    finally:
        os.chdir(here)
    for each in links:
        each._guard.stop()
    return status, out.getvalue(), err.getvalue()

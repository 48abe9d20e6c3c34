"""Runs whole jobs on the MPI ranks of a test, which have imported everything already.

The first rank runs the test and starts jobs. The other ranks take part in them.
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
"""Ranks of the largest job."""


class InProcessJobs:
    """All ranks of a test. Uses its own communicator, so that a failed test affects no other."""

    def __init__(self) -> None:
        self._world = MPI.COMM_WORLD.Dup()
        self._job_is_running = False

    def run(self, ranks: int, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run a job on the first `ranks` ranks, as `mpirun` would. Called on the first rank."""
        job = self._broadcast((ranks, arguments, cwd))
        status, out, err = (list(each) for each in zip(*self._take_part(*job), strict=True))
        return subprocess.CompletedProcess(arguments, max(status), "".join(out), "".join(err))

    def serve(self) -> None:
        """Take part in jobs until `close`. Called on the other ranks."""
        while (job := self._broadcast(None)) is not None:
            self._take_part(*job)

    def close(self) -> None:
        """End `serve` on the other ranks. Called on the first rank."""
        if not self._job_is_running:  # after an exception in a job, the others never listen again
            self._broadcast(None)

    def _broadcast(self, job: Any) -> Any:
        self._barrier()
        return self._world.bcast(job)

    def _take_part(self, ranks: int, arguments: tuple[str, ...], cwd: Path) -> Any:
        self._job_is_running = True
        is_member = self._world.rank < ranks
        comm = self._world.Split(0 if is_member else 1, self._world.rank)
        result = _run_rank(comm, list(arguments), cwd) if is_member else (0, "", "")
        self._barrier()
        if comm != MPI.COMM_NULL:  # the library has few of them; a job that ended has freed its own
            comm.Free()
        self._job_is_running = False
        return self._world.gather(result)

    def _barrier(self) -> None:
        """Wait for all ranks in sleep, since others need the core."""
        request = self._world.Ibarrier()
        while not request.Test():
            time.sleep(1e-3)


def _run_rank(comm: MPI.Comm, arguments: list[str], cwd: Path) -> tuple[int, str, str]:
    """Run one rank of a job. Return its exit status, output and error output."""
    previous, out, err = os.getcwd(), StringIO(), StringIO()
    links: list[link.Link] = []

    class JobLink(link.Link):
        def __init__(self) -> None:
            super().__init__(comm)
            links.append(self)

        def check_world(self) -> None:
            """Accept a world of fewer ranks than the launcher started."""

        def abort(self, code: int = 1) -> NoReturn:
            print(out.getvalue(), err.getvalue(), file=sys.__stderr__, flush=True)
            raise AssertionError("a rank aborts the job")

    os.chdir(cwd)
    try:
        with mock.patch.object(link, "Link", JobLink), redirect_stdout(out), redirect_stderr(err):
            status = main(arguments)
    finally:
        os.chdir(previous)
    for each in links:
        each.detector.stop()
    return status, out.getvalue(), err.getvalue()

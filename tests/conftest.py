"""Test settings: threads, tests on several MPI ranks, and jobs without a launcher.

With --with-mpi, a rank that fails or hangs ends the whole test job. Otherwise the other ranks would
wait forever in their next collective.
"""

from __future__ import annotations

import os
import sys
import time

import pytest

# As in a job, one thread per rank. Must be set before numpy and torch load their libraries.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

TIMEOUT = float(os.environ.get("MPI_TEST_TIMEOUT", "5"))
"""Seconds that a rank waits for the others after each test."""
MIN_RANKS = 3


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("--with-mpi", False):
        return
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    if world.size < MIN_RANKS:
        raise pytest.UsageError(
            f"--with-mpi on {world.size} ranks would skip every test; "
            "run `mpirun -n 4 python -m pytest --with-mpi`"
        )
    config._barrier_comm = world.Dup()  # type: ignore[attr-defined]  # while every rank is alive
    if world.rank > 0:
        config.option.verbose = -2  # only rank 0 prints progress


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--with-mpi", False):
        # Plain pytest runs the one-rank tests.
        kept = [item for item in items if item.get_closest_marker("mpi")]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept
        return
    from fedgan_mpi.testing.jobs import MPIRUN

    if not MPIRUN:
        for item in items:
            if item.get_closest_marker("jobs"):
                item.add_marker(pytest.mark.skip(reason="mpirun is not installed"))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None):
    result = yield
    if item.config.getoption("--with-mpi", False):
        _barrier(item.config, item.nodeid)
    return result


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.getoption("--with-mpi", False):
        # With -x, only the rank that failed stops before the next test.
        _barrier(session.config, "end of the session")


def _barrier(config: pytest.Config, place: str) -> None:
    """Wait for all ranks. End the test job if one does not arrive in time."""
    request = config._barrier_comm.Ibarrier()  # type: ignore[attr-defined]
    deadline = time.monotonic() + TIMEOUT
    while not request.Test():
        if time.monotonic() > deadline:
            _abort(f"{place}: other ranks did not finish within {TIMEOUT} s")
        time.sleep(1e-3)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    # Printed at once: after an abort there is no summary.
    if report.failed and "mpi4py.MPI" in sys.modules:
        from mpi4py import MPI

        if MPI.COMM_WORLD.size > 1:
            _log(f"FAILED {report.nodeid} ({report.when})\n{report.longreprtext}")


def _log(line: str) -> None:
    from mpi4py import MPI

    print(f"\n[rank {MPI.COMM_WORLD.rank}] {line}", file=sys.__stderr__, flush=True)


def _abort(reason: str) -> None:
    from mpi4py import MPI

    _log(reason)
    time.sleep(0.2)
    MPI.COMM_WORLD.Abort(1)


@pytest.fixture
def comm():
    """A communicator for one test. Messages that a failed test left behind cannot reach others."""
    from mpi4py import MPI

    duplicate = MPI.COMM_WORLD.Dup()
    yield duplicate
    if duplicate != MPI.COMM_NULL:  # MPICH has 2,048 of them, and the tests need more
        duplicate.Free()

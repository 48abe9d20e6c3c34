"""A rank that fails or hangs must end the test job, not leave the others waiting in their next
collective."""

from __future__ import annotations

import os
import sys
import time

import pytest

# As in a job: pools of threads would fight over the cores. Before numpy and torch load their
# libraries.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

GRACE = float(
    os.environ.get("MPI_TEST_GRACE", "5")
)  # seconds a rank waits for the others after a test
FEWEST_RANKS = 3


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("--with-mpi", False):
        return
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    if world.size < FEWEST_RANKS:
        raise pytest.UsageError(
            f"--with-mpi on {world.size} ranks would skip every test; "
            "run `mpirun -n 4 python -m pytest --with-mpi`"
        )
    config._guard = world.Dup()  # type: ignore[attr-defined]  # while every rank is alive
    if world.rank > 0:
        config.option.verbose = -2  # one rank draws progress


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--with-mpi", False):
        # One-rank tests have run in plain pytest; four copies at a time would only cost.
        kept = [item for item in items if item.get_closest_marker("mpi")]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None):
    result = yield
    if item.config.getoption("--with-mpi", False):
        _meet(item.config, item.nodeid)
    return result


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.getoption("--with-mpi", False):
        # With -x, the rank that failed leaves while the others begin the next test.
        _meet(session.config, "end of the session")


def _meet(config: pytest.Config, where: str) -> None:
    arrived = config._guard.Ibarrier()  # type: ignore[attr-defined]
    deadline = time.monotonic() + GRACE
    while not arrived.Test():
        if time.monotonic() > deadline:
            _end(f"{where}: other ranks did not finish within {GRACE} s")
        time.sleep(1e-3)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if (
        report.failed and "mpi4py.MPI" in sys.modules
    ):  # said at once: an abort would swallow the summary
        from mpi4py import MPI

        if MPI.COMM_WORLD.size > 1:
            _say(f"FAILED {report.nodeid} ({report.when})\n{report.longreprtext}")


def _say(line: str) -> None:
    from mpi4py import MPI

    print(f"\n[rank {MPI.COMM_WORLD.rank}] {line}", file=sys.__stderr__, flush=True)


def _end(why: str) -> None:
    from mpi4py import MPI

    _say(why)
    time.sleep(0.2)
    MPI.COMM_WORLD.Abort(1)


@pytest.fixture
def comm():
    """A communicator of this test's own: stray messages of a failed one stay on the dead."""
    from mpi4py import MPI

    return MPI.COMM_WORLD.Dup()

"""CPU affinity by the phases of a round, read back from the operating system."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from fedgan_mpi.hardware.affinity import Affinity, use_cores

ALL = sorted(os.sched_getaffinity(0))
pytestmark = pytest.mark.skipif(len(ALL) < 2, reason="needs two cores")
SHARED = [ALL[1], ALL[0]]  # the server's core first


@pytest.fixture(autouse=True)
def restore() -> Iterator[None]:
    yield
    os.sched_setaffinity(0, ALL)


def now() -> set[int]:
    return os.sched_getaffinity(0)


def affinity(rank: int) -> Affinity:
    return Affinity(SHARED, rank=rank)


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_a_device_rank_leaves_the_servers_core_from_average_to_broadcast(rank):
    device, core = affinity(rank), SHARED[rank % 2]
    with device.pinned():
        assert now() == {core}
        device.on_verb("average")
        assert now() == {SHARED[1]}
        device.on_verb("prefetch")
        device.on_verb("sum")
        assert now() == {SHARED[1]}
        device.on_verb("broadcast")
        assert now() == {core}


def test_the_server_stays_on_its_core():
    server = affinity(0)
    with server.pinned():
        for verb in ("broadcast", "average", "sum", "broadcast"):
            server.on_verb(verb)
            assert now() == {SHARED[0]}
    assert now() == set(SHARED)


def test_all_cores_are_free_between_rounds_and_after_an_error():
    device = affinity(1)
    with pytest.raises(ZeroDivisionError), device.pinned():
        with device.unpinned():
            assert now() == set(SHARED)
            device.on_verb("average")
            assert now() == set(SHARED)
        assert now() == {SHARED[1]}
        raise ZeroDivisionError
    assert now() == set(SHARED)


@pytest.mark.parametrize("cores", [[], ALL[:1]])
def test_without_shared_cores_nothing_is_pinned(cores):
    before = now()
    device = Affinity(cores, rank=1)
    with device.pinned():
        device.on_verb("average")
        assert now() == before


def test_outside_of_rounds_verbs_change_nothing():
    before = now()
    affinity(1).on_verb("average")
    assert now() == before


def test_a_thread_inherits_the_affinity_and_can_leave_it():
    seen = []

    def run() -> None:
        seen.append(now())
        use_cores(SHARED)
        seen.append(now())

    device = affinity(1)
    with device.pinned():
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    assert seen == [{SHARED[1]}, set(SHARED)]


def test_cores_that_a_container_has_lost_do_not_end_the_run():
    use_cores([4095])
    assert now() == set(ALL)

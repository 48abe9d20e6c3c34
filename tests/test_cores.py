"""Which cores a rank's thread computes on: seen by the operating system's own word."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace
from typing import cast

import pytest

from fedgan_mpi.cluster.cores import Cores
from fedgan_mpi.cluster.link import Link

ALL = sorted(os.sched_getaffinity(0))
pytestmark = pytest.mark.skipif(len(ALL) < 2, reason="needs two cores")


def cores_of(rank: int, pin: bool = True, shared: list[int] | None = None) -> Cores:
    link = SimpleNamespace(
        rank=rank,
        rank_of=lambda device: device,
        shared_cores=ALL[:2] if shared is None else shared,
    )
    return Cores(cast(Link, link), pin)


@pytest.fixture(autouse=True)
def free():
    yield
    os.sched_setaffinity(0, ALL)


def here() -> list[int]:
    return sorted(os.sched_getaffinity(0))


def test_those_who_work_are_as_many_on_each_core():
    ranks, on = [1, 3, 5, 7], []  # the others are absent
    for rank in ranks:
        with cores_of(rank).spread(ranks):
            on += here()
        assert here() == ALL[:2]  # those that the machine's ranks share
    assert sorted(on) == [ALL[0], ALL[0], ALL[1], ALL[1]]


@pytest.mark.parametrize(
    ("ranks", "pin", "shared"),
    [([1, 2, 3], True, None), ([2, 4], True, None), ([1, 2], False, None), ([1, 2], True, [])],
    ids=["uneven", "absent", "asked not to", "not crowded"],
)
def test_otherwise_the_operating_system_decides(ranks, pin, shared):
    cores = cores_of(1, pin, shared)
    for work in (cores.spread(ranks), cores_of(1, False).of_server()):
        with work:
            assert here() == ALL
    assert here() == ALL


def test_a_pool_of_threads_is_not_pinned():
    import torch

    torch.set_num_threads(2)
    try:
        with cores_of(1).spread([1, 2]):
            assert here() == ALL
    finally:
        torch.set_num_threads(1)


def test_cores_that_are_taken_away_end_nothing(monkeypatch):
    cores = cores_of(1)

    def refuse(process: int, asked: object) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    with cores.spread([1, 2]):
        pass
    monkeypatch.undo()
    with cores.spread([1, 2]):
        assert here() == ALL  # it does not try again


def test_an_error_gives_the_cores_back():
    with pytest.raises(ZeroDivisionError), cores_of(0).of_server():
        assert here() == ALL[:1]
        raise ZeroDivisionError
    assert here() == ALL[:2]


def test_work_beside_the_server_leaves_its_core_alone_unless_it_takes_much_longer():
    cores = cores_of(1)
    with cores.beside_server([1, 2, 3, 4], 1.0):
        assert here() == ALL[1:2]
        busy(0.02)
    with cores.beside_server([1, 2, 3, 4], 0.08):  # four times 20 ms
        assert here() == ALL[1:2]
        busy(0.02)
    with cores.beside_server([1, 2, 3, 4], 0.05):
        assert here() == ALL[:2]
        busy(0.02)
    with cores.spread([1, 2]):  # it goes on when others begin the next round
        assert here() == ALL[:2]
    with cores.beside_server([1, 2], 0.05):  # half of them take part
        assert here() == ALL[1:2]
    with cores.spread([1, 2]):
        assert len(here()) == 1


def busy(seconds: float) -> None:
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass

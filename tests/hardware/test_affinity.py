"""Which cores a rank's thread computes on: seen by the operating system's own word."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from fedgan_mpi.comm.link import Link
from fedgan_mpi.hardware.affinity import Affinity, run_anywhere

ALL = sorted(os.sched_getaffinity(0))
pytestmark = pytest.mark.skipif(len(ALL) < 2, reason="needs two cores")


class Machine:
    """Ranks of one machine with two cores, as threads of this process."""

    def __init__(self, ranks: int, shared: list[int] | None = None) -> None:
        self.lines = np.zeros((ranks, 8), np.int64)
        self.lines[:, 4] = os.stat("/proc/self/ns/pid").st_ino
        self.shared = ALL[:2] if shared is None else shared
        self.first = threading.get_native_id() % 2

    def cores(self, rank: int, pin: bool = True, **how: bool) -> Affinity:
        link = SimpleNamespace(
            rank=rank,
            is_server=rank == 0,
            shared_cores=self.shared,
            shared_lines=lambda: self.lines,
            barrier=self._server_is_there,
        )
        return Affinity(cast(Link, link), pin, **how)

    def _server_is_there(self) -> None:
        # Its thread's number says which core is the first.
        self.lines[0, 3] = self.first

    def core(self, place: int) -> list[int]:
        return [ALL[(place + self.first) % 2]]


@pytest.fixture(autouse=True)
def free() -> Iterator[None]:
    yield
    os.sched_setaffinity(0, ALL)


def here(thread: int = 0) -> list[int]:
    return sorted(os.sched_getaffinity(thread))


class Busy:
    """A rank that computes until it is told to end, in a thread of its own."""

    def __init__(self, machine: Machine, rank: int, *, beside: bool = False) -> None:
        self._over, self._there = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, args=(machine, rank, beside))
        self._thread.start()
        assert self._there.wait(10)

    def _run(self, machine: Machine, rank: int, beside: bool) -> None:
        cores = machine.cores(rank)
        self.id = threading.get_native_id()
        with cores.held():
            if beside:
                cores.stand_beside_server()
            with cores.work():
                self._there.set()
                self._over.wait(10)

    @property
    def on(self) -> list[int]:
        return here(self.id)

    def end(self) -> None:
        self._over.set()
        self._thread.join(10)


@contextmanager
def busy(machine: Machine, *ranks: int, beside: bool = False) -> Iterator[list[Busy]]:
    them = [Busy(machine, rank, beside=beside) for rank in ranks]
    try:
        yield them
    finally:
        for one in them:
            one.end()


# ---------------------------------------------------------------- one rank's own place


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_a_rank_waits_and_computes_in_its_place(rank):
    machine = Machine(5)
    cores, place = machine.cores(rank), rank % 2
    with cores.held():
        assert here() == machine.core(place)  # before there is anything to do
        with cores.work():
            assert here() == machine.core(place)
        cores.stand_beside_server()
        assert here() == machine.core(1)  # the server's is the first
        with cores.work():
            assert here() == machine.core(1)
        cores.stand_together()
        assert here() == machine.core(place)
    assert here() == machine.shared


def test_the_server_has_a_core_of_its_own_beside_devices():
    machine = Machine(5)
    server = machine.cores(0)
    with server.held():
        server.stand_beside_server()
        with server.work():
            assert here() == machine.core(0)


@pytest.mark.parametrize("rank", [1, 2])
def test_where_the_server_computes_at_the_same_time_devices_stay_beside_it(rank):
    machine = Machine(3)
    cores = machine.cores(rank, server_computes_too=True)
    with cores.held(), cores.work():
        assert here() == machine.core(1)


@pytest.mark.parametrize(
    ("pin", "shared"), [(False, None), (True, [])], ids=["asked not to", "not crowded"]
)
def test_otherwise_the_operating_system_decides(pin, shared):
    cores = Machine(3, shared).cores(1, pin)
    with cores.held():
        cores.stand_beside_server()
        with cores.work():
            assert here() == ALL
        assert cores.has_room_beside_server(before=99)
    assert here() == ALL


def test_rounds_alone_have_places():
    cores = Machine(3).cores(1)
    cores.stand_beside_server()
    with cores.work():
        assert here() == ALL


def test_a_pool_of_threads_is_not_pinned():
    import torch

    torch.set_num_threads(2)
    try:
        cores = Machine(3).cores(1)
        with cores.held(), cores.work():
            assert here() == ALL
    finally:
        torch.set_num_threads(1)


def test_between_rounds_the_operating_system_decides():
    machine = Machine(3)
    cores = machine.cores(1, server_computes_too=True)
    with cores.held():
        with cores.released(), cores.work():
            assert here() == machine.shared
        assert here() == machine.core(1)
    with cores.released():
        pass
    assert here() == machine.shared  # as there are no rounds


def test_cores_that_are_taken_away_end_nothing(monkeypatch):
    machine = Machine(6)
    cores, allowed = machine.cores(1), os.sched_setaffinity

    def refuse(thread: int, asked: object) -> None:
        if thread == 0 and len(list(cast(Any, asked))) == 1:
            raise OSError(22, "Invalid argument")
        allowed(thread, cast(Any, asked))

    with busy(machine, 2, 4, beside=True) as (second, fourth):
        monkeypatch.setattr(os, "sched_setaffinity", refuse)
        with cores.held(), cores.work():
            assert not machine.lines[1, 1]  # it counts no more
        monkeypatch.undo()
        assert second.on == fourth.on == machine.core(1)  # nor does it move others
    with cores.held(), cores.work():
        assert here() == ALL  # it does not try again


def test_without_proc_nobody_is_moved(monkeypatch):
    def no_proc(path: str) -> None:
        raise FileNotFoundError(path)

    machine = Machine(6)
    machine.lines[:, 4] = 0
    monkeypatch.setattr(os, "stat", no_proc)
    server = machine.cores(0)
    monkeypatch.undo()
    machine.lines[:, 4] = 0
    with server.held(), busy(machine, 2, 4, beside=True) as (second, fourth):
        with server.work():
            pass
        assert second.on == fourth.on == machine.core(1)


def test_an_error_gives_the_cores_back():
    machine = Machine(3)
    cores = machine.cores(1)
    with pytest.raises(ZeroDivisionError), cores.held(), cores.work():
        assert here() == machine.core(1)
        raise ZeroDivisionError
    assert here() == machine.shared
    assert not machine.lines[:, 1].any()  # nobody is said to compute


def test_a_thread_that_was_begun_in_a_round_can_go_anywhere():
    machine, seen = Machine(3), []

    def look() -> None:
        run_anywhere(machine.shared)
        seen.append(here())

    with machine.cores(1).held():
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        assert here() != ALL
    assert seen == [ALL[:2]]


# ---------------------------------------------------------------- among others


def test_who_finds_its_core_taken_begins_on_an_idle_one():
    machine = Machine(5)
    cores = machine.cores(4)  # whose place is that of rank 2
    with cores.held():
        with busy(machine, 2), cores.work():
            assert here() == machine.core(1)
        with busy(machine, 1, 2), cores.work():
            assert here() == machine.core(0)  # none is idle
        with busy(machine, 1), cores.work():
            assert here() == machine.core(0)  # nor is its own taken


def test_beside_the_server_nobody_begins_on_its_core():
    machine = Machine(5)
    cores = machine.cores(3)
    with cores.held():
        cores.stand_beside_server()
        with busy(machine, 2), cores.work():
            assert here() == machine.core(1)


def test_the_last_of_a_core_takes_over_another_rank():
    machine = Machine(6)
    cores = machine.cores(2)
    with cores.held(), ExitStack() as work:
        work.enter_context(cores.work())
        with busy(machine, 1, 3) as (first, third):
            assert first.on == third.on == machine.core(1)
            work.close()
            assert (first.on, third.on) == (machine.core(1), machine.core(0))
            third.end()
            with cores.work():
                pass
            assert first.on == machine.core(1)  # alone there


def test_who_is_not_the_last_takes_over_nobody():
    machine = Machine(6)
    cores = machine.cores(2)
    with cores.held(), ExitStack() as work:
        work.enter_context(cores.work())
        with busy(machine, 1, 4, 3) as (first, fourth, third):
            assert fourth.on == machine.core(0)
            work.close()
            assert first.on == third.on == machine.core(1)


def test_the_server_gives_its_core_to_those_beside_it():
    machine = Machine(4)
    server = machine.cores(0)
    with server.held(), busy(machine, 1, 2, 3, beside=True) as devices:
        with server.work():
            assert all(device.on == machine.core(1) for device in devices)
        assert [device.on for device in devices] == [
            machine.core(1), machine.core(1), machine.core(0),
        ]  # fmt: skip


@pytest.mark.parametrize("can_move", [True, False])
def test_who_is_done_before_the_server_leaves_it_in_peace_and_is_moved(can_move):
    machine = Machine(4)
    if not can_move:
        machine.lines[3, 4] = 1  # a container of its own
    server, device = machine.cores(0), machine.cores(2)
    its_name, done, over = [], threading.Event(), threading.Event()

    def play() -> None:
        its_name.append(threading.get_native_id())
        with device.held():
            device.stand_beside_server()
            device.stand_together()
            done.set()
            over.wait(10)

    thread = threading.Thread(target=play)
    with server.held():
        with server.work():
            thread.start()
            assert done.wait(10)
            machine.lines[2, 3] = its_name[0]
            assert here(its_name[0]) == machine.core(1 if can_move else 0)
        server.stand_together()
        assert here(its_name[0]) == machine.core(0)
        assert here() == machine.core(0)
    over.set()
    thread.join(10)


@pytest.mark.parametrize("how", ["refused its core", "between rounds"])
def test_who_has_no_place_is_not_given_one(how, monkeypatch):
    machine, seen = Machine(4), []
    server, device = machine.cores(0), machine.cores(2)
    done, over, allowed = threading.Event(), threading.Event(), os.sched_setaffinity

    def refuse(thread: int, asked: object) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise OSError(22, "Invalid argument")
        allowed(thread, cast(Any, asked))

    def play() -> None:
        machine.lines[2, 3] = threading.get_native_id()
        with device.held(), ExitStack() as between:
            if how == "between rounds":
                between.enter_context(device.released())
            else:
                device.stand_beside_server()
            done.set()
            over.wait(10)
            seen.append(here())

    if how == "refused its core":
        monkeypatch.setattr(os, "sched_setaffinity", refuse)
    thread = threading.Thread(target=play)
    with server.held():
        os.sched_setaffinity(0, ALL)  # which the thread inherits
        thread.start()
        assert done.wait(10)
        server.stand_together()
        over.set()
        thread.join(10)
    assert [len(cores) > 1 for cores in seen] == [True]


def test_at_the_end_of_a_round_the_server_moves_nobody_who_still_computes():
    machine = Machine(4)
    server = machine.cores(0)
    with server.held(), busy(machine, 2, beside=True) as (device,):
        server.stand_together()
        assert device.on == machine.core(1)


def test_a_thread_of_another_container_is_left_alone():
    machine = Machine(6)
    machine.lines[5, 4] = 1  # its names of threads are others'
    server = machine.cores(0)
    with server.held(), busy(machine, 2, 4, beside=True) as (second, fourth):
        with server.work():
            pass
        assert second.on == fourth.on == machine.core(1)


def test_one_that_cannot_be_moved_is_no_error(monkeypatch):
    machine = Machine(6)
    cores = machine.cores(0)
    with cores.held(), busy(machine, 2, 4, beside=True):
        machine.lines[2, 3] = machine.lines[4, 3] = 2**22 + 1  # no thread has such a number
        with cores.work():
            pass
        with cores.work():
            assert here() == machine.core(0)


@pytest.mark.parametrize("beside", [True, False])
def test_of_four_cores_those_beside_the_server_use_three(monkeypatch, beside):
    affinity: dict[int, set[int]] = {0: set(range(4))}
    monkeypatch.setattr(os, "sched_getaffinity", lambda thread: affinity[thread])
    monkeypatch.setattr(os, "sched_setaffinity", lambda thread, on: affinity.update({thread: on}))
    machine = Machine(9, shared=[10, 11, 12, 13])
    machine.first = 4  # the first of them comes first
    ranks = [machine.cores(rank) for rank in (1, 4, 7)]  # whose places beside it are the same
    with ExitStack() as stack:
        used = []
        for cores in ranks:
            stack.enter_context(cores.held())
            if beside:
                cores.stand_beside_server()
            stack.enter_context(cores.work())
            used += affinity[0]
    assert sorted(used) == ([11, 12, 13] if beside else [10, 11, 13])


# ---------------------------------------------------------------- how many beside the server


def spend(cores: Affinity, seconds: float, **kind: Any) -> None:
    with cores.work(**kind):
        until = time.thread_time() + seconds
        while time.thread_time() < until:
            pass


def test_devices_look_ahead_while_the_server_computes_and_no_longer():
    machine = Machine(5)
    server, first, second = (machine.cores(rank) for rank in (0, 1, 2))
    with server.held(), first.held(), second.held():
        assert second.has_room_beside_server(before=99)  # nothing is known yet
        for cores in (server, first, second):
            cores.stand_beside_server()
        spend(server, 0.05)
        spend(first, 0.02)
        spend(second, 0.2)  # held up, once
        rooms = [second.has_room_beside_server(before=before) for before in range(5)]
        assert rooms == [True, True, True, False, False]
        spend(server, 0.001, is_step=False)  # a score, say
        second.stand_together()
        spend(second, 0.001)
        again = [second.has_room_beside_server(before=before) for before in range(5)]
        assert again == rooms

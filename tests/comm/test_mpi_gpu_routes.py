"""The choice of the road for vectors of GPUs, with fake GPUs: the trial, the timing, the sums."""

from __future__ import annotations

import logging
import time
from functools import partial

import pytest
import torch
from broken_comm import LARGEST, BrokenComm
from fake_gpu import FakeGpu
from mpi4py import MPI

from fedgan_mpi.comm import routes
from fedgan_mpi.comm.gpu import timing
from fedgan_mpi.comm.gpu.timing import Probe, fastest_road, measure
from fedgan_mpi.comm.gpu.trial import problem_of_trial
from fedgan_mpi.comm.link import AgreedError, Link
from fedgan_mpi.config import LinkConfig

pytestmark = pytest.mark.mpi(min_size=3)

N = 1003
LARGE = 16 * LARGEST
"""Bytes of which each rank's slice is larger than what arrives."""
PROBLEMS = {"raises": "failed: ", "hangs": "did not end within 1 s", "wrong": "wrong values"}


def trial(comm, nbytes: int, seconds: float = 10.0) -> str | None:
    return problem_of_trial(comm, FakeGpu(), nbytes=nbytes, seconds=seconds)


@pytest.mark.parametrize(
    ("method", "how", "name"),
    [
        ("Ibcast", "raises", "Bcast"),
        ("Ibcast", "wrong", "Bcast"),
        ("Ialltoallv", "hangs", "Alltoallv"),
        ("Igatherv", "raises", "Gatherv"),
        ("Isend", "hangs", "Isend and Irecv"),
        ("Irecv", "wrong", "Isend and Irecv"),
    ],
)
def test_the_trial_finds_a_failure_with_large_vectors_and_no_rank_is_left(comm, method, how, name):
    broken = BrokenComm(comm, method, how)
    assert trial(broken, LARGEST // 2) is None  # too short to fail
    problem = trial(broken, LARGE, seconds=10.0 if how == "wrong" else 1.0)
    assert problem is not None and PROBLEMS[how] in problem
    assert problem.startswith(f"{name} of {LARGE} bytes of float32 ")
    assert comm.allgather(problem) == [problem] * comm.size
    assert trial(comm, LARGE) is None  # the failed operations disturb no later one


@pytest.mark.parametrize("route", ["auto", "cuda"])
def test_a_failed_trial_means_the_host_or_one_sentence(comm, monkeypatch, caplog, route):
    monkeypatch.setattr(routes, "gpu_count", lambda: 1)
    monkeypatch.setattr(routes, "is_gpu_aware", lambda comm: True)
    small = partial(problem_of_trial, nbytes=LARGE, seconds=1.0)
    monkeypatch.setattr(routes, "problem_of_trial", small)
    link, gpu = Link(BrokenComm(comm, "Ialltoallv", "raises"), transport="mpi"), FakeGpu()
    link.configure(LinkConfig(route=route))
    if route == "cuda":
        with pytest.raises(AgreedError, match=r"'cuda', but .*Alltoallv of \d+ .*; use 'host'"):
            link.choose_route("cuda:0", {"down": N}, gpu)
        return
    with caplog.at_level(logging.WARNING):
        link.choose_route("cuda:0", {"down": N}, gpu)
    warnings = [record.getMessage() for record in caplog.records]
    assert (len(warnings) == 2) == link.is_server
    if link.is_server:
        assert "if the job dies now, set link.route to 'host'" in warnings[0]
        assert "Alltoallv" in warnings[1]
    (route,) = link.routes
    assert route.startswith("Vectors to the devices: pinned host memory, ")
    vector = gpu.vector(torch.full((N,), float(link.is_server)))
    link.broadcast(vector)
    assert bool((vector == 1).all())


# -------------------------------------------------------------------- timing


def timed_probe(comm, seconds, wrong=lambda road, turn: False):
    """A probe and its fake clock. seconds: (road, rank, turn) -> seconds of a transfer."""
    now, turns = [0.0], [-1, -1]

    def move(road: int) -> None:
        turns[road] += 1
        now[0] += seconds(road, comm.rank, turns[road])
        last[0] = road

    last = [0]
    probe = Probe(
        nbytes=1,
        prepare=lambda: None,
        move=move,
        has_arrived=lambda: not wrong(last[0], turns[last[0]]),
    )
    return probe, lambda: now[0]


def test_the_slowest_rank_and_the_fastest_repeat_count(comm):
    def seconds(road, rank, turn):
        if turn == 0:
            return 0.125  # the warm-up does not count
        direct = {0: 1.0, 2: 9.0 + turn % 3}.get(rank, 2.0)
        return (direct, 5.0 + turn % 2)[road]

    probe, clock = timed_probe(comm, seconds)
    found = measure(probe, [0, 1], comm, clock)
    assert found == [9.0, 5.0] and fastest_road(found) == 1


def test_a_road_with_wrong_values_on_one_rank_is_not_chosen(comm):
    wrong = lambda road, turn: road == 0 and turn == 3 and comm.rank == 1  # noqa: E731
    probe, clock = timed_probe(comm, lambda road, rank, turn: 1.0 + road, wrong)
    found = measure(probe, [0, 1], comm, clock)
    assert found == [None, 2.0] and fastest_road(found) == 1
    assert fastest_road([None, None]) is None
    assert fastest_road([1.0, 2.0]) == 0


def routed_link(comm, monkeypatch, seconds: dict[str, list[float | None]], route="auto"):
    """Return a link whose transfers need these seconds on the direct road and on the other."""
    monkeypatch.setattr(routes, "gpu_count", lambda: 1)
    monkeypatch.setattr(routes, "is_gpu_aware", lambda comm: True)
    monkeypatch.setattr(routes, "problem_of_trial", lambda comm, gpu: None)
    measured = iter(seconds.values())
    monkeypatch.setattr(timing, "measure", lambda probe, roads, comm: next(measured))
    link, gpu = Link(comm, transport="mpi"), FakeGpu()
    link.configure(LinkConfig(route=route))
    link.choose_route("cuda:0", dict.fromkeys(seconds, N), gpu)
    return link, gpu


def test_each_kind_of_transfer_takes_its_own_fastest_road(comm, monkeypatch):
    link, gpu = routed_link(
        comm,
        monkeypatch,
        {"down": [1e-6, 4e-6], "sum": [8e-6, 2e-6], "point_to_point": [None, 1.0]},
    )
    down, total, between = link.routes
    assert down == (
        "Vectors to the devices: GPU memory, 4.01 GB/s (not pinned host memory, 1 GB/s)"
    )
    assert total.startswith(
        "Sums on the server: pinned host memory, 2.01 GB/s (not GPU memory, 0.5"
    )
    assert between.endswith("(not GPU memory, wrong values)")
    vector, row = gpu.vector(torch.ones(N)), gpu.vector(torch.ones(1, N))
    link.broadcast(vector)
    assert not gpu.buffers
    link.reduce(row, vector)
    assert gpu.buffers


def test_both_roads_have_the_same_sum_without_a_reduction_of_mpi(comm, monkeypatch):
    long = LARGEST  # in numbers, so that the reduction would fail
    values = torch.randn(comm.size, 1, long, generator=torch.Generator().manual_seed(3))
    expected = torch.zeros(long)
    for rank in range(1, comm.size):  # in the order of ranks
        expected += values[rank, 0]
    for seconds in ([1.0, 2.0], [2.0, 1.0]):
        link, gpu = routed_link(comm, monkeypatch, {"sum": seconds})
        link._comm = BrokenComm(comm, "Reduce", "raises", rank=comm.rank)
        row, into = gpu.vector(values[comm.rank]), gpu.vector(torch.zeros(long))
        link.reduce(row, into)
        assert torch.equal(into, expected if link.is_server else torch.zeros(long))
    link._sums_in_rank_order = False  # negative control
    with pytest.raises(MPI.Exception):
        link.reduce(row, into)


def test_sums_in_gpu_memory_use_no_operation_without_a_trial(comm, monkeypatch):
    """Of two ranks, where a gather would do in host memory."""
    pair = comm.Split(min(comm.rank // 2, comm.size // 2 - 1))
    for seconds in ([1.0, 2.0], [2.0, 1.0]):
        link, gpu = routed_link(pair, monkeypatch, {"sum": seconds})
        link._comm = BrokenComm(pair, "Gather", "raises", rank=pair.rank)
        row, into = gpu.vector(torch.ones(1, LARGEST)), gpu.vector(torch.zeros(LARGEST))
        if seconds[0] < seconds[1]:
            link.reduce(row, into)
            assert bool((into == (pair.size - 1) * link.is_server).all())
        elif pair.size == 2:  # negative control
            with pytest.raises(MPI.Exception):
                link.reduce(row, into)
    pair.Free()


def test_wrong_values_on_every_road_are_refused(comm, monkeypatch):
    for route, right in (("auto", "another MPI library"), ("cuda", "use link.route 'host'")):
        roads = [None] if route == "cuda" else [None, None]
        with pytest.raises(AgreedError, match=rf"GPU memory, wrong values.*{right}"):
            routed_link(comm, monkeypatch, {"down": roads}, route)


def test_probes_transfer_what_they_check(comm, monkeypatch):
    """All three kinds on both roads, measured for real; a lost number is found."""
    monkeypatch.setattr(timing, "REPEATS", 1)
    monkeypatch.setattr(routes, "gpu_count", lambda: 1)
    monkeypatch.setattr(routes, "is_gpu_aware", lambda comm: True)
    monkeypatch.setattr(routes, "problem_of_trial", lambda comm, gpu: None)
    lengths = {"down": N, "sum": N, "point_to_point": N}
    for dtype in ("float32", "bfloat16"):
        link, gpu = Link(comm, transport="mpi"), FakeGpu()
        link.configure(LinkConfig(wire_dtype=dtype))
        link.choose_route("cuda:0", lengths, gpu)
        assert [route.count("GB/s") for route in link.routes] == [2, 2, 2]
    link, gpu = Link(comm, transport="mpi"), FakeGpu()
    link.configure(LinkConfig())
    monkeypatch.setattr(gpu, "synchronize", lambda: None)
    copy = gpu.copy
    monkeypatch.setattr(gpu, "copy", lambda to, source: copy(to[: len(to) - 1], source[:-1]))
    link.choose_route("cuda:0", lengths, gpu)
    assert all("pinned host memory, wrong values" in route for route in link.routes)


def test_the_job_ends_if_a_timed_transfer_hangs_or_fails():
    ends: list[str] = []
    with timing.time_limit(10.0, ends.append):
        pass
    with timing.time_limit(0.05, ends.append):
        time.sleep(0.3)
    assert ends == ["did not end within 0.05 s"]
    with pytest.raises(MPI.Exception), timing.time_limit(10.0, ends.append):
        raise MPI.Exception(MPI.ERR_BUFFER)
    assert len(ends) == 2 and ends[1].startswith("failed: ")

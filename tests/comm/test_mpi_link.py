"""The link's collective verbs, on every transport."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from fedgan_mpi.comm.link import AgreedError, Link
from fedgan_mpi.comm.shared_memory import Channel, Doorbell
from fedgan_mpi.config import LinkConfig

pytestmark = pytest.mark.mpi(min_size=3)

TRANSPORTS = ("mpi", "polling", "shared_memory")


@pytest.fixture(params=TRANSPORTS)
def link(request, comm):
    return Link(comm, transport=request.param)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_broadcast_copies_the_servers_vector_to_every_rank(link, dtype):
    for turn in range(5):  # later turns reuse buffers
        expected = torch.arange(1000, dtype=dtype) + turn
        vector = expected.clone() if link.is_server else torch.full((1000,), -1, dtype=dtype)
        link.broadcast(vector)
        assert torch.equal(vector, expected)


def test_broadcast_of_a_slice_changes_nothing_outside_it(link):
    whole = torch.zeros(30) if link.is_server else torch.full((30,), 7.0)
    link.broadcast(whole[10:20])
    outside = torch.cat([whole[:10], whole[20:]])
    assert torch.equal(whole[10:20], torch.zeros(10))
    assert torch.equal(outside, torch.full((20,), 0.0 if link.is_server else 7.0))


@pytest.mark.parametrize("part", [slice(0, 10), slice(10, 20), slice(20, 30), slice(0, 30)])
def test_a_prefetched_part_is_not_sent_again(link, part):
    whole = torch.arange(30.0) if link.is_server else torch.full((30,), -1.0)
    link.prefetch(whole[part])
    assert link.has_prefetched(whole[part]) and link.bytes_down == 0
    assert torch.equal(whole[part], torch.arange(30.0)[part])
    if not link.is_server:
        whole[part] = -2.0
    link.broadcast(whole)
    expected = torch.arange(30.0)
    if not link.is_server:
        expected[part] = -2.0
    assert torch.equal(whole, expected) and link.bytes_down == 30 * 4
    link.broadcast(whole)  # the next broadcast is whole again
    assert torch.equal(whole, torch.arange(30.0)) and not link.has_prefetched(whole[part])


def test_a_discarded_prefetch_is_sent_again(link):
    whole = torch.arange(30.0) if link.is_server else torch.full((30,), -1.0)
    link.prefetch(whole[:10])
    link.discard_prefetched()
    if not link.is_server:
        whole[:10] = -2.0
    link.broadcast(whole)
    assert torch.equal(whole, torch.arange(30.0))


def test_reduce_adds_the_device_ranks_vectors(link):
    for turn in range(5):
        into = torch.full((500,), 99.0)
        rows = torch.full((1, 500), 0.0 if link.is_server else float(link.rank + turn))
        link.reduce(rows, into)
        total = sum(rank + turn for rank in range(1, link.size))
        assert torch.equal(into, torch.full((500,), float(total if link.is_server else 99)))


@pytest.mark.parametrize(("average", "count"), [("reduce", 1), ("gather", 2)])
def test_rows_of_the_link_give_the_same_sum_as_other_rows(link, average, count):
    link.configure(LinkConfig(average=average))
    own, others = link.rows(count, torch.zeros(300)), torch.zeros(count, 300)
    assert own.shape == (count, 300) and not own.any()
    numbers = torch.randn(4, link.size, count, 300, generator=torch.Generator().manual_seed(7))
    for turn in range(4):
        link.broadcast(torch.zeros(1))
        sums = torch.zeros(2, 300)
        for rows, into in zip((own, others), sums, strict=True):
            rows.copy_(numbers[turn, link.rank] * (not link.is_server))
            link.reduce(rows, into)
        assert torch.equal(*sums)
        assert sums.any() == link.is_server


def test_rows_of_the_link_cross_shared_memory_without_a_copy(comm, monkeypatch):
    in_place = []
    up = Channel.up

    def record(channel, vector, consume):
        in_place.append(vector.ctypes.data == channel.own_buffer.ctypes.data)
        up(channel, vector, consume)

    monkeypatch.setattr(Channel, "up", record)
    link, into = Link(comm, transport="shared_memory"), torch.zeros(1000)
    rows = link.rows(1, into)
    rows.fill_(0.0 if link.is_server else 1.0)
    link.reduce(rows, into)
    assert into[0] == (link.size - 1 if link.is_server else 0)
    link.reduce(torch.zeros(1, 1000), into)
    assert link.is_server or in_place == [True, False]


def test_only_writing_ranks_have_memory_in_a_channel(comm):
    doorbell = Doorbell(comm)
    down = Channel(comm, doorbell, 2000, range(1))
    up = Channel(comm, doorbell, 1000, range(1, comm.size))
    sizes = (2000, 0) if comm.rank == 0 else (0, 1000)
    assert (down.own_buffer.size, up.own_buffer.size) == sizes


def test_gather_sums_in_device_order(link):
    """A float32 sum depends on its order: first row of rank 1, 2, …, then the second row."""
    link.configure(LinkConfig(average="gather"))
    count = 3
    rows = torch.randn(link.size, count, 400, generator=torch.Generator().manual_seed(3))
    rows *= torch.logspace(-6, 6, link.size * count).reshape(link.size, count, 1)
    into = torch.zeros(400)
    link.reduce(torch.zeros(count, 400) if link.is_server else rows[link.rank], into)
    if link.is_server:
        forward, backward = torch.zeros(400), torch.zeros(400)
        order = [(row, rank) for row in range(count) for rank in range(1, link.size)]
        for row, rank in order:
            forward += rows[rank, row]
        for row, rank in sorted(order, key=lambda each: (-each[1], -each[0])):
            backward += rows[rank, row]
        assert torch.equal(into, forward)
        assert not torch.equal(into, backward)


def test_sum_is_equal_on_every_rank_and_exact_for_entries_of_one_rank(link):
    numbers = np.zeros(link.size)
    numbers[link.rank] = 0.1 + link.rank
    expected = np.array([0.1 + rank for rank in range(link.size)])
    for _ in range(5):
        assert np.array_equal(link.sum(numbers), expected)


def test_sum_accepts_vectors_of_changing_length(link):
    for length in (1, 5000, 20, 40000):
        assert np.array_equal(link.sum(np.ones(length)), np.full(length, float(link.size)))


def test_a_nan_reaches_every_rank(link):
    total = link.sum(np.array([np.nan if link.rank == 1 else 1.0]))
    assert np.isnan(total[0])


def test_device_ranks_call_overlap_before_the_server_enters_the_sum(link, comm):
    requests = []
    link.any(False)
    link.sum(np.ones(1))  # creates the channel

    def send() -> None:
        requests.append(None if link.is_server else comm.isend(link.rank, 0, tag=7))

    if link.is_server:  # would wait forever if the device ranks waited for the server
        assert [comm.recv(source=rank, tag=7) for rank in range(1, link.size)]
    assert link.sum(np.ones(1), overlap=send)[0] == link.size
    if not link.is_server:
        requests[0].wait()


def test_any_is_true_if_one_rank_is(link):
    assert link.any(link.rank == link.size - 1)
    assert not link.any(False)


def test_messages_of_fast_ranks_do_not_overwrite_earlier_ones(link):
    stream = np.random.default_rng(link.rank)
    for turn in range(40):
        time.sleep(stream.uniform(0, 0.003))
        vector = torch.full((64,), float(turn if link.is_server else -1))
        link.broadcast(vector)
        assert vector[0] == turn
        into = torch.zeros(64)
        link.reduce(torch.full((1, 64), 0.0 if link.is_server else turn * 1.0), into)
        if link.is_server:
            assert into[0] == turn * (link.size - 1)
        if turn % 3 == 0:
            assert link.sum(np.array([float(turn)]))[0] == turn * link.size


def test_bytes_are_counted_once_per_participant(link):
    link.reset_counters()
    link.broadcast(torch.zeros(100))
    link.broadcast_exact(torch.zeros(10))
    link.reduce(torch.zeros(1, 25), torch.zeros(25))
    assert (link.bytes_down, link.bytes_up) == (400, 100)
    assert link.seconds_down > 0 and link.seconds_up > 0


def test_the_cuda_route_is_refused_without_a_gpu(link):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(AgreedError, match=r"link\.route is 'cuda'"):
        link.configure(LinkConfig(route="cuda"))


def test_oversubscribed_ranks_of_one_machine_use_shared_memory(comm):
    link = Link(comm)
    assert link.transport == ("shared_memory" if link.local_size > link.local_cores else "mpi")


def test_each_verb_counts_its_seconds_in_its_direction(link):
    """Downlink and uplink of a round; no verb counts in both."""
    vector, hosted = torch.zeros(1000), [k for k in (1, 2) if link.rank_of(k) == link.rank]
    rows = {k: torch.zeros(10) for k in ((1, 2) if link.is_server else hosted)}
    verbs = {
        "broadcast": lambda: link.broadcast(vector),
        "reduce": lambda: link.reduce(torch.zeros(1, 1000), vector),
        "scatter": lambda: link.scatter(rows),
        "gather": lambda: link.gather(rows),
        "permute": lambda: link.permute({k: torch.zeros(10) for k in hosted}, {1: 2, 2: 1}),
    }
    for name, act in verbs.items():
        link.reset_counters()
        act()
        down, up = link.seconds_down, link.seconds_up
        assert (down > 0, up > 0) == (
            (True, False) if name in ("broadcast", "scatter") else (False, True)
        ), name

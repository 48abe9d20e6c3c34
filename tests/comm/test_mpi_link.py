"""The link's verbs, on every road: plain MPI, MPI after napping, and shared memory with sleep."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedgan_mpi.comm.link import AgreedError, Link
from fedgan_mpi.config import LinkConfig
from fedgan_mpi.errors import UserError
from fedgan_mpi.faults.detector import connect_machines

pytestmark = pytest.mark.mpi(min_size=3)

TRANSPORTS = ("mpi", "polling", "shared_memory")


@pytest.fixture(params=TRANSPORTS)
def link(request, comm):
    return Link(comm, transport=request.param)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_broadcast_puts_the_servers_vector_everywhere(link, dtype):
    for turn in range(5):  # buffers are used again
        expected = torch.arange(1000, dtype=dtype) + turn
        vector = expected.clone() if link.is_server else torch.full((1000,), -1, dtype=dtype)
        link.broadcast(vector)
        assert torch.equal(vector, expected)


def test_broadcast_writes_through_views(link):
    """What stands before and after the slice that travels stays."""
    whole = torch.zeros(30) if link.is_server else torch.full((30,), 7.0)
    link.broadcast(whole[10:20])
    outside = torch.cat([whole[:10], whole[20:]])
    assert torch.equal(whole[10:20], torch.zeros(10))
    assert torch.equal(outside, torch.full((20,), 0.0 if link.is_server else 7.0))


def test_average_adds_the_device_ranks(link):
    for turn in range(5):
        into = torch.full((500,), 99.0)
        uplink = torch.full((1, 500), 0.0 if link.is_server else float(link.rank + turn))
        link.average(uplink, into)
        total = sum(rank + turn for rank in range(1, link.size))
        assert torch.equal(into, torch.full((500,), float(total if link.is_server else 99)))


@pytest.mark.parametrize(("average", "count"), [("reduce", 1), ("gather", 2)])
def test_the_links_own_rows_add_up_like_others(link, average, count):
    link.configure(LinkConfig(average=average))
    own, others = link.rows(count, torch.zeros(300)), torch.zeros(count, 300)
    assert own.shape == (count, 300) and not own.any()
    numbers = torch.randn(4, link.size, count, 300, generator=torch.Generator().manual_seed(7))
    for turn in range(4):
        link.broadcast(torch.zeros(1))
        sums = torch.zeros(2, 300)
        for rows, into in zip((own, others), sums, strict=True):
            rows.copy_(numbers[turn, link.rank] * (not link.is_server))
            link.average(rows, into)
        assert torch.equal(*sums)
        assert sums.any() == link.is_server


def test_ranks_that_share_memory_send_rows_where_they_lie(comm):
    link, into = Link(comm, transport="shared_memory"), torch.zeros(1000)
    rows = link.rows(1, into)
    rows.fill_(0.0 if link.is_server else 1.0)
    link.average(rows, into)
    assert into[0] == (link.size - 1 if link.is_server else 0)
    assert "up" not in link._mailboxes  # where others are copied into
    link.average(torch.zeros(1, 1000), into)
    assert "up" in link._mailboxes
    if not link.is_server:
        places = [link._own_rows[0][1].mine, link._mailboxes["up"].mine]
        assert [rows.data_ptr() == place.ctypes.data for place in places] == [True, False]


def test_gather_adds_in_the_order_of_devices(link):
    """float32 sums depend on their order: device 1, 2, … of rank 1, 2, …, row by row."""
    link.configure(LinkConfig(average="gather"))
    rows = 3
    everyone = torch.randn(link.size, rows, 400, generator=torch.Generator().manual_seed(3))
    everyone *= torch.logspace(-6, 6, link.size * rows).reshape(link.size, rows, 1)
    uplink = torch.zeros(rows, 400) if link.is_server else everyone[link.rank]
    into = torch.zeros(400)
    link.average(uplink, into)
    if link.is_server:
        in_order = torch.zeros(400)
        for row in range(rows):
            for rank in range(1, link.size):
                in_order += everyone[rank, row]
        backwards = torch.zeros(400)
        for rank in reversed(range(1, link.size)):
            for row in reversed(range(rows)):
                backwards += everyone[rank, row]
        assert torch.equal(into, in_order)
        assert not torch.equal(into, backwards)


def test_sum_is_the_same_on_every_rank_and_exact_for_single_owners(link):
    mine = np.zeros(link.size)
    mine[link.rank] = 0.1 + link.rank
    expected = np.array([0.1 + rank for rank in range(link.size)])
    for _ in range(5):
        assert np.array_equal(link.sum(mine), expected)


def test_sum_grows_with_longer_vectors(link):
    for length in (1, 5000, 20, 40000):
        assert np.array_equal(link.sum(np.ones(length)), np.full(length, float(link.size)))


def test_a_nan_travels(link):
    total = link.sum(np.array([np.nan if link.rank == 1 else 1.0]))
    assert np.isnan(total[0])


def test_what_a_rank_does_meanwhile_is_no_exchange(link, monkeypatch):
    """So that it is found out where it hangs there, and counted as others are."""
    link.watch(100.0)
    board, seen, left = link._guard.board, [], []
    honest = board.leave
    monkeypatch.setattr(board, "leave", lambda verb: (left.append(verb), honest(verb)))
    for turn in range(3):
        one = np.array([1.0])
        total = link.sum(one, meanwhile=lambda: seen.append(board.stamp[1]))
        assert total[0] == link.size
        assert len(seen) == turn + 1
    assert not any(seen) and board.stamp[1] == 0
    in_sum = left[1]  # where it waits for the others again
    assert left == [0, in_sum, 0] * 3 and in_sum > 0
    entered = float(board.stamp[0])
    assert link.sum(np.array([entered]))[0] == entered * link.size
    link.watch(None)


def test_device_ranks_go_ahead_before_the_server_comes(link, comm):
    sent = []
    link.any(False)  # there is room for numbers from then on

    def tell() -> None:
        sent.append(None if link.is_server else comm.isend(link.rank, 0, tag=7))

    if link.is_server:  # it waits in vain where they wait for it
        assert [comm.recv(source=rank, tag=7) for rank in range(1, link.size)]
    assert link.sum(np.ones(1), meanwhile=tell)[0] == link.size
    if not link.is_server:
        sent[0].wait()


def test_any(link):
    assert link.any(link.rank == link.size - 1)
    assert not link.any(False)


def test_uneven_ranks_do_not_overtake_each_other(link):
    """A fast rank's next message must not land in a slow rank's last one."""
    stream = np.random.default_rng(link.rank)
    for turn in range(40):
        import time

        time.sleep(stream.uniform(0, 0.003))
        vector = torch.full((64,), float(turn if link.is_server else -1))
        link.broadcast(vector)
        assert vector[0] == turn
        into = torch.zeros(64)
        link.average(torch.full((1, 64), 0.0 if link.is_server else turn * 1.0), into)
        if link.is_server:
            assert into[0] == turn * (link.size - 1)
        if turn % 3 == 0:
            assert link.sum(np.array([float(turn)]))[0] == turn * link.size


def test_bytes_are_counted_once_per_participant(link):
    link.reset_counters()
    link.broadcast(torch.zeros(100))
    link.broadcast(torch.zeros(10), traffic="other")
    link.average(torch.zeros(1, 25), torch.zeros(25))
    assert (link.bytes_down, link.bytes_up) == (400, 100)
    assert link.seconds_down > 0 and link.seconds_up > 0


def test_agree_tells_every_rank_the_lowest_ranks_problem(link):
    link.agree(None)
    with pytest.raises(AgreedError, match=r"^trouble 1 \(and 1 more\)$"):
        link.agree(f"trouble {link.rank}" if link.rank in (1, 2) else None)


def test_from_server_gives_results_and_errors_everywhere(link):
    assert link.from_server(lambda: {"made": link.rank}) == {"made": 0}

    def wrong():
        raise UserError("a mistake")

    def left():
        raise SystemExit(3)

    with pytest.raises(AgreedError, match="a mistake"):
        link.from_server(wrong)
    with pytest.raises(SystemExit) as leave:
        link.from_server(left)
    assert leave.value.code == 3


def test_vectors_of_different_lengths_are_refused(link):
    link.check_lengths(torch.zeros(5))
    with pytest.raises(AgreedError, match="rank 1 has vectors"):
        link.check_lengths(torch.zeros(5 if link.rank != 1 else 4))
    with pytest.raises(AgreedError, match="float64"):
        link.check_lengths(torch.zeros(5, dtype=torch.float64 if link.rank == 2 else torch.float32))


def test_the_cuda_route_is_refused_without_a_gpu(link):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(AgreedError, match=r"link\.route is 'cuda'"):
        link.configure(LinkConfig(route="cuda"))


def test_crowded_ranks_of_one_machine_take_shared_memory(comm):
    link = Link(comm)
    assert link.transport == ("shared_memory" if link.ranks_here > link.cores_here else "mpi")


def test_far_ranks_get_a_lifeline_to_the_server(comm):
    link = Link(comm)
    line = connect_machines(
        comm, comm.Barrier, leader=0 if link.rank < 2 else 2
    )  # as if of two machines
    assert (line is not None) == (link.rank != 1)
    link.barrier()
    assert line is None or (line.far == [*range(2, link.size)] and line.dead() == [])
    link.barrier()
    if line is not None and not link.is_server:
        line.close()
    link.barrier()
    if line is not None and link.is_server:
        assert line.dead() == []
        line.close()


def test_ranks_of_one_machine_open_no_connection(comm, monkeypatch):
    monkeypatch.setattr("fedgan_mpi.faults.detector.Listener", None)
    assert connect_machines(comm, comm.Barrier, leader=0) is None


def test_where_a_rank_cannot_connect_the_server_says_so_and_the_job_goes_on(
    comm, monkeypatch, capfd
):
    link = Link(comm)
    monkeypatch.setattr("fedgan_mpi.faults.peer_monitor.PATIENCE", 1.0)
    if link.rank == 2:
        monkeypatch.setattr("fedgan_mpi.faults.detector.connect", lambda invitation, rank: {})
    assert connect_machines(comm, comm.Barrier, leader=0 if link.rank < 2 else 2) is None
    told = capfd.readouterr().err
    assert ("rank 2 on" in told and "cannot connect to this host" in told) == link.is_server

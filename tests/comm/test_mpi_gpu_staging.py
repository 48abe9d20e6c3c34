"""The link's verbs for vectors of a GPU, with a stand-in for it on every rank or on some."""

from __future__ import annotations

import oracle_wire as oracle
import pytest
import torch
from fake_gpu import FakeGpu

from fedgan_mpi.comm import gpu_staging as staging
from fedgan_mpi.comm import link as link_module
from fedgan_mpi.comm.compression import Wire
from fedgan_mpi.comm.link import AgreedError, Link
from fedgan_mpi.config import LinkConfig

pytestmark = pytest.mark.mpi(min_size=3)

TRANSPORTS = ("mpi", "polling", "shared_memory")
N = 1003


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(staging, "PIECE", 400)


def gpu_link(
    comm, monkeypatch, *, transport, route, aware=True, works=True, gpus=lambda rank: True
):
    """A link whose ranks have stand-ins where `gpus` says so, and what owns its vectors."""
    link, gpu = Link(comm, transport=transport), FakeGpu()
    monkeypatch.setattr(link_module, "cuda_aware", lambda comm: aware)
    monkeypatch.setattr(link_module, "numbers_travel", lambda *asked: works)
    link._asked_route = route
    has = gpus(link.rank)
    link.choose_route("cuda:0" if has else "cpu", gpu if has else None)
    return link, gpu, (gpu.vector if has else torch.clone)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("average", ["reduce", "gather"])
@pytest.mark.parametrize("where", ["host", "direct", "all but the server", "the server alone"])
def test_verbs_bring_what_was_computed(comm, monkeypatch, transport, dtype, average, where):
    gpus = {
        "all but the server": lambda rank: rank > 0,
        "the server alone": lambda rank: rank == 0,
    }.get(where, lambda rank: True)
    route = "auto" if where == "direct" else "host"
    link, gpu, make = gpu_link(comm, monkeypatch, transport=transport, route=route, gpus=gpus)
    asked = LinkConfig(wire_dtype=dtype, average=average)
    link.wire, link.in_order = Wire(dtype), asked.average == "gather" or dtype == "bfloat16"
    rounded = lambda x: (  # noqa: E731
        x if dtype == "float32" else torch.from_numpy(oracle.to_bfloat16(x.numpy()))
    )
    # What a wire packs on a GPU lies there, too.
    room = link.wire.workspace

    def room_there(purpose, like):
        bits = room(purpose, like)
        if gpu.owns(like):
            gpu._owned.add(bits.untyped_storage().data_ptr())
        return bits

    link.wire.workspace = room_there
    down_vector, into = make(torch.zeros(N)), make(torch.zeros(N))
    uplink = make(torch.zeros(2 if link.in_order else 1, N))
    here = range(1, link.size) if link.is_server else [link.rank]
    rows = {k: make(torch.zeros(N)) for k in here}
    stream = torch.Generator().manual_seed(1)
    for turn in range(3):
        down = torch.randn(N, generator=stream)
        ups = torch.randn(link.size, 2, N, generator=stream)
        if link.is_server:
            if gpus(0) and dtype == "float32":
                gpu.compute(down_vector, down)  # a wire's own rounding comes before, as a kernel
            else:
                down_vector.copy_(down)
        link.broadcast(down_vector)
        assert torch.equal(down_vector, down if link.is_server else rounded(down))

        if not link.is_server:
            values = ups[link.rank, : len(uplink)]
            if gpus(link.rank) and dtype == "float32":
                gpu.compute(uplink, values)
            else:
                uplink.copy_(values)
        link.average(uplink, into)
        if link.is_server:
            expected = torch.zeros(N)
            for row in range(len(uplink)):
                for rank in range(1, link.size):
                    expected += rounded(ups[rank, row])
            torch.testing.assert_close(into, expected, rtol=1e-6, atol=1e-6)
        else:
            assert not into.any()

        for k in here:
            rows[k].copy_(down + k if link.is_server else torch.full((N,), -1.0))
        link.scatter(rows)
        for k in here:
            assert torch.equal(rows[k], down + k if link.is_server else rounded(down + k))
        for k in here:
            rows[k].copy_(torch.zeros(N) if link.is_server else ups[k, 1])
        link.gather(rows)
        for k in here:
            assert torch.equal(rows[k], rounded(ups[k, 1]) if link.is_server else ups[k, 1])
        mine = {} if link.is_server else {link.rank: rows[link.rank]}
        to = {k: k % (link.size - 1) + 1 for k in range(1, link.size)}
        link.permute(mine, to)
        for k in mine:
            (sender,) = (s for s, receiver in to.items() if receiver == k)
            assert torch.equal(mine[k], rounded(ups[sender, 1]))
        assert gpu.idle
        if turn == 0:
            taken = len(gpu.buffers)
    assert len(gpu.buffers) == taken  # nothing is pinned anew in a later round
    assert (where == "direct") == (taken == 0) or not gpus(link.rank)


def test_mpi_reads_nothing_that_is_still_being_computed(comm, monkeypatch):
    """With a stand-in that is not waited for, what is sent is not what was computed: the tests
    above would see it."""
    link, gpu, make = gpu_link(comm, monkeypatch, transport="mpi", route="auto")
    gpu.synchronize = lambda: None
    vector = make(torch.zeros(N))
    if link.is_server:
        gpu.compute(vector, torch.ones(N))
    link.broadcast(vector)
    assert not vector.any()


ROUTES = {
    # asked, library is aware, numbers come through: what is taken
    "auto, and all is well": ("auto", True, True, "cuda, the GPU's own memory"),
    "auto, but the library says no": ("auto", False, True, "host memory, pinned"),
    "auto, but numbers do not come through": ("auto", True, False, "host memory, pinned"),
    "host, though it could": ("host", True, True, "host memory, pinned"),
    "cuda, and all is well": ("cuda", True, True, "cuda, the GPU's own memory"),
    "cuda, but the library says no": ("cuda", False, True, None),
    "cuda, but numbers do not come through": ("cuda", True, False, None),
}


@pytest.mark.parametrize("case", ROUTES)
def test_the_route_is_what_all_ranks_can_take(comm, monkeypatch, case):
    asked, aware, works, expected = ROUTES[case]
    options = {"transport": "mpi", "route": asked, "aware": aware, "works": works}
    if expected is None:
        with pytest.raises(AgreedError, match=r"link\.route is 'cuda', which needs"):
            gpu_link(comm, monkeypatch, **options)
    else:
        link, _, _ = gpu_link(comm, monkeypatch, **options)
        assert link.route.startswith(expected)


def test_one_rank_without_a_gpu_makes_all_take_host_memory(comm, monkeypatch):
    asked = {"transport": "mpi", "gpus": lambda rank: rank != 1}
    link, _, _ = gpu_link(comm, monkeypatch, route="auto", **asked)
    assert link.route.startswith("host memory, pinned")
    with pytest.raises(AgreedError, match=r"link\.route is 'cuda'"):
        gpu_link(comm, monkeypatch, route="cuda", **asked)


def test_without_gpus_there_is_nothing_to_choose(comm):
    link = Link(comm)
    link.choose_route("cpu")
    assert link.route == "host memory, where vectors lie" and not link._any_gpu

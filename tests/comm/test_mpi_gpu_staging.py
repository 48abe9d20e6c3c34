"""The link's verbs for GPU vectors, with a fake GPU on every rank or on some."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from fake_gpu import FakeGpu
from rounding import rounded

from fedgan_mpi.comm import routes
from fedgan_mpi.comm.gpu import timing, torch_comm
from fedgan_mpi.comm.link import AgreedError, Link
from fedgan_mpi.config import LinkConfig

pytestmark = pytest.mark.mpi(min_size=3)

N = 1003

RANKS_WITH_GPU = {
    "host": lambda rank: True,
    "direct": lambda rank: True,
    "nccl": lambda rank: True,
    "all but the server": lambda rank: rank > 0,
    "the server alone": lambda rank: rank == 0,
}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr("fedgan_mpi.comm.gpu.staging.CHUNK_BYTES", 400)


def gpu_link(
    comm,
    monkeypatch,
    config: LinkConfig,
    *,
    transport="mpi",
    cuda_aware=True,
    problem=None,
    lengths=None,
    has_gpu=lambda rank: True,
):
    """Return a link, this rank's fake GPU, and a function that places vectors on it.

    cuda_aware: what the MPI library claims. problem: of the trial with GPU memory. lengths: of
    the vectors that are timed.
    """
    monkeypatch.setattr(routes, "gpu_count", lambda: 1)
    monkeypatch.setattr(routes, "is_gpu_aware", lambda comm: True)
    monkeypatch.setattr(torch_comm, "BACKEND", "gloo")  # NCCL needs GPUs
    link, gpu = Link(comm, transport=transport), FakeGpu(f"GPU {comm.rank}")
    link.configure(config)
    monkeypatch.setattr(routes, "is_gpu_aware", lambda comm: cuda_aware)
    monkeypatch.setattr(routes, "problem_of_trial", lambda *arguments: problem)
    local = has_gpu(link.rank)
    link.choose_route("cuda:0" if local else "cpu", lengths, gpu if local else None)
    # Packed vectors are allocated on the device of the vector.
    workspace = link.wire.workspace
    monkeypatch.setattr(
        link.wire,
        "workspace",
        lambda key, like: (
            gpu.adopt(workspace(key, like)) if gpu.owns(like) else workspace(key, like)
        ),
    )
    return link, gpu, gpu.vector if local else torch.clone


@pytest.mark.parametrize(
    ("where", "transport", "dtype", "average"),
    [
        case
        for case in product(
            RANKS_WITH_GPU,
            ("mpi", "polling", "shared_memory"),
            ("float32", "bfloat16"),
            ("reduce", "gather"),
        )
        if case[0] != "nccl" or case[1] == "mpi" or case[2:] == ("float32", "gather")
    ],
)
def test_verbs_transfer_computed_values(comm, monkeypatch, transport, dtype, average, where):
    has_gpu = RANKS_WITH_GPU[where]
    route = {"direct": "cuda", "nccl": "nccl"}.get(where, "host")
    config = LinkConfig(wire_dtype=dtype, average=average, route=route)
    link, gpu, place = gpu_link(comm, monkeypatch, config, transport=transport, has_gpu=has_gpu)
    # A lossy wire packs in a kernel, which the fake GPU cannot queue.
    queues_kernels = has_gpu(link.rank) and dtype == "float32"
    vector, into = place(torch.zeros(N)), place(torch.zeros(N))
    uplink = place(torch.zeros(2 if link.in_order else 1, N))
    devices = range(1, link.size)
    hosted = devices if link.is_server else [link.rank]
    rows = {k: place(torch.zeros(N)) for k in hosted}
    to = {k: k % (link.size - 1) + 1 for k in devices}
    stream = torch.Generator().manual_seed(1)
    for turn in range(3):
        down = torch.randn(N, generator=stream)
        ups = torch.randn(link.size, 2, N, generator=stream)
        if link.is_server:
            gpu.compute(vector, down) if queues_kernels else vector.copy_(down)
        link.broadcast(vector)
        assert torch.equal(vector, down if link.is_server else rounded(down, dtype))

        if not link.is_server:
            values = ups[link.rank, : len(uplink)]
            gpu.compute(uplink, values) if queues_kernels else uplink.copy_(values)
        link.reduce(uplink, into)
        if link.is_server:
            expected = torch.zeros(N)
            for row in range(len(uplink)):
                for rank in devices:
                    expected += rounded(ups[rank, row], dtype)
            tolerance = 0 if route != "host" else 1e-6  # MPI's reduction has its own order
            torch.testing.assert_close(into, expected, rtol=tolerance, atol=tolerance)
        else:
            assert not into.any()

        for k in hosted:
            rows[k].copy_(down + k if link.is_server else torch.full((N,), -1.0))
        link.scatter(rows)
        for k in hosted:
            assert torch.equal(rows[k], down + k if link.is_server else rounded(down + k, dtype))

        for k in hosted:
            rows[k].copy_(torch.zeros(N) if link.is_server else ups[k, 1])
        link.gather(rows)
        for k in hosted:
            received = rounded(ups[k, 1], dtype)
            assert torch.equal(rows[k], received if link.is_server else ups[k, 1])

        moving = {} if link.is_server else {link.rank: rows[link.rank]}
        link.permute(moving, to)
        for k in moving:
            (source,) = (sender for sender, receiver in to.items() if receiver == k)
            assert torch.equal(moving[k], rounded(ups[source, 1], dtype))
        assert gpu.idle
        if turn == 0:
            pinned = len(gpu.buffers)
    assert len(gpu.buffers) == pinned  # later turns allocate no pinned memory
    assert (route != "host") == (pinned == 0) or not has_gpu(link.rank)
    if where == "nccl":
        link.close()


def test_the_fake_gpu_detects_a_missing_synchronization(comm, monkeypatch):
    """Negative control of the tests above."""
    link, gpu, place = gpu_link(comm, monkeypatch, LinkConfig(route="cuda"))
    monkeypatch.setattr(gpu, "synchronize", lambda: None)
    vector = place(torch.zeros(N))
    if link.is_server:
        gpu.compute(vector, torch.ones(N))
    link.broadcast(vector)
    assert not vector.any()


ROUTES = {
    # link.route, CUDA-aware library, problem of the trial: roads that are timed, None if refused
    "auto, and CUDA works": ("auto", True, None, {"GPU memory", "pinned host memory"}),
    "auto, but not CUDA-aware": ("auto", False, None, {"pinned host memory"}),
    "auto, but the trial fails": ("auto", True, "wrong", {"pinned host memory"}),
    "host, although CUDA works": ("host", True, None, {"pinned host memory"}),
    "cuda, and CUDA works": ("cuda", True, None, {"GPU memory"}),
    "cuda, but not CUDA-aware": ("cuda", False, None, None),
    "cuda, but the trial fails": ("cuda", True, "wrong", None),
}


@pytest.mark.parametrize("case", ROUTES)
def test_the_route_works_on_every_rank_or_is_refused(comm, monkeypatch, case):
    route, cuda_aware, problem, expected = ROUTES[case]
    monkeypatch.setattr(timing, "REPEATS", 1)
    lengths = {"down": N, "sum": N, "point_to_point": N}
    claims = {"cuda_aware": cuda_aware, "problem": problem, "lengths": lengths}
    config = LinkConfig(route=route)
    if expected is None:
        with pytest.raises(AgreedError, match=r"link\.route is 'cuda', but .*; use 'host'"):
            gpu_link(comm, monkeypatch, config, **claims)
    else:
        link, _, _ = gpu_link(comm, monkeypatch, config, **claims)
        assert len(link.routes) == 3
        for sentence in link.routes:
            assert sentence.count("GB/s") == len(expected)
            assert all(road in sentence for road in expected)


def test_one_rank_without_a_gpu_excludes_the_cuda_route(comm, monkeypatch):
    has_gpu = {"has_gpu": lambda rank: rank != 1}
    link, _, _ = gpu_link(comm, monkeypatch, LinkConfig(), **has_gpu)
    assert all("host memory" in route and " GPU" not in route for route in link.routes)
    with pytest.raises(AgreedError, match=r"link\.route is 'cuda', but a rank has no GPU"):
        gpu_link(comm, monkeypatch, LinkConfig(route="cuda"), **has_gpu)


def test_vectors_in_host_memory_need_no_route(comm):
    link = Link(comm)
    link.choose_route("cpu")
    assert link.routes == []

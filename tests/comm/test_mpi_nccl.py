"""The route `nccl`, with torch's backend gloo in place of NCCL. The verbs are tested with those of
the other routes."""

from __future__ import annotations

import pytest
import torch
from broken_comm import BrokenComm
from fake_gpu import FakeGpu
from mpi4py import MPI
from rounds import UNEQUAL
from toys import play, toy_algorithm, toy_config, toy_shards, vectors

from fedgan_mpi.comm import routes
from fedgan_mpi.comm.gpu import torch_comm
from fedgan_mpi.comm.gpu.torch_comm import TorchComm, connect_store
from fedgan_mpi.comm.link import AgreedError, Link
from fedgan_mpi.config import LinkConfig

pytestmark = pytest.mark.mpi(min_size=3)


def nccl_link(comm, monkeypatch, gpu: FakeGpu | None, *, backend: str = "gloo") -> Link:
    monkeypatch.setattr(torch_comm, "BACKEND", backend)
    monkeypatch.setattr(routes, "gpu_count", lambda: 1)
    link = Link(comm, transport="mpi")
    link.configure(LinkConfig(route="nccl"))
    link.choose_route("cpu" if gpu is None else "cuda:0", {"down": 100, "sum": 100}, gpu)
    return link


def test_the_log_names_nccl_and_mpi_keeps_the_small_messages(comm, monkeypatch):
    gpu = FakeGpu(f"GPU {comm.rank}")
    link = nccl_link(comm, monkeypatch, gpu)
    assert [route.split(",")[0] for route in link.routes] == [
        "Vectors to the devices: NCCL",
        "Sums on the server: NCCL",
    ]
    assert link.allgather(link.rank) == list(range(link.size))
    link.close()
    again = nccl_link(MPI.COMM_WORLD.Dup(), monkeypatch, gpu)
    again.close()  # a second run in this process


@pytest.mark.parametrize("name", ["ren", "mdgan", "uagan"])
def test_rounds_by_nccl_equal_rounds_by_mpi(comm, monkeypatch, name):
    """Bit for bit, with five devices, some of them on one rank."""
    monkeypatch.setattr(torch_comm, "BACKEND", "gloo")
    monkeypatch.setattr(routes, "gpu_count", lambda: 1)
    results = []
    for route in ("nccl", "host"):
        link = Link(comm.Dup(), transport="mpi")
        config = toy_config(algorithm={"name": name}, link={"route": route, "average": "gather"})
        link.configure(config.link)
        if route == "nccl":
            link.choose_route("cuda:0", {}, FakeGpu(f"GPU {link.rank}"))
            # Negative control: vectors do not travel by MPI.
            link._comm = BrokenComm(link._comm, "Bcast", "raises", rank=link.rank, largest=0)
        algorithm = toy_algorithm(link, config, toy_shards(UNEQUAL))
        play(algorithm, 4)
        results.append([vector.clone() for vector in vectors(algorithm)])
        link.close()
    assert results[0] and all(map(torch.equal, *results))


def test_messages_match_by_tag_also_to_the_own_rank(comm, monkeypatch):
    monkeypatch.setattr(torch_comm, "BACKEND", "gloo")
    mover = TorchComm(comm, connect_store(comm), "cpu", lambda: None)
    ranks = range(comm.size)

    def value(source: int, to: int, tag: int) -> float:
        return 10000.0 * source + 100 * to + tag

    received = {(source, tag): torch.zeros(5) for source in ranks for tag in (1, 2, 3)}
    messages = [
        mover.Irecv(vector, source, tag) for (source, tag), vector in reversed(received.items())
    ]
    for to in ranks:
        for tag in (2, 3, 1):
            messages.append(mover.Isend(torch.full((5,), value(comm.rank, to, tag)), to, tag))
    mover.complete(messages)
    for (source, tag), vector in received.items():
        assert bool((vector == value(source, comm.rank, tag)).all())
    mover.complete([])
    mover.free()


def test_ranks_that_share_a_gpu_are_refused(comm, monkeypatch):
    shared = FakeGpu("GPU 0" if comm.rank in (0, 2) else f"GPU {comm.rank}")
    with pytest.raises(AgreedError, match=r"'nccl', but ranks 0 and 2 share a GPU.*; use 'auto'"):
        nccl_link(comm, monkeypatch, shared)


def test_a_rank_without_a_gpu_is_refused(comm, monkeypatch):
    gpu = None if comm.rank == 1 else FakeGpu(f"GPU {comm.rank}")
    with pytest.raises(AgreedError, match="'nccl', but a rank has no GPU; use 'auto'"):
        nccl_link(comm, monkeypatch, gpu)


def test_a_torch_without_nccl_is_refused(comm, monkeypatch):
    available = comm.rank != 1
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: available)
    with pytest.raises(AgreedError, match=r"'nccl', but torch \S+ is built without NCCL"):
        nccl_link(comm, monkeypatch, FakeGpu(f"GPU {comm.rank}"), backend="nccl")


def test_a_rank_that_cannot_reach_the_server_is_named(comm, monkeypatch):
    monkeypatch.setattr("fedgan_mpi.faults.handshake.CONNECT_TIMEOUT", 0.5)
    if comm.rank == 2:
        monkeypatch.setattr(torch_comm, "connect", lambda endpoint, rank: {})
    with pytest.raises(AgreedError, match="'nccl', but rank 2 cannot reach the server by TCP"):
        nccl_link(comm, monkeypatch, FakeGpu(f"GPU {comm.rank}"))


def test_a_machine_without_gpus_is_refused_before_torch_is_asked(comm):
    with pytest.raises(AgreedError, match="'nccl', but there is no GPU here; use 'host'"):
        Link(comm).configure(LinkConfig(route="nccl"))

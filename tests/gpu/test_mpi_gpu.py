"""Ranks with GPUs, several to one where need be: `mpirun -n 3 python -m pytest --with-mpi -m gpu`
where there is one."""

from __future__ import annotations

import oracle_wire as oracle
import pytest
import torch
from rounds import UNEQUAL
from toys import play, toy_algorithm, toy_config, toy_shards, vectors

from fedgan_mpi.comm.cuda_aware import cuda_aware
from fedgan_mpi.comm.link import Link
from fedgan_mpi.config import LinkConfig

pytestmark = [
    pytest.mark.mpi(min_size=3),
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]

N = 3_000_017


def gpu_link(comm, route, dtype="float32", average="reduce", transport=None):
    """A link and this rank's GPU; skips where the MPI library takes no GPU memory."""
    link = Link(comm, transport=transport)
    if route == "cuda" and not cuda_aware(comm):
        pytest.skip("this MPI library is not CUDA-aware")
    link.configure(LinkConfig(route=route, wire_dtype=dtype, average=average))
    torch_device = f"cuda:{link.rank_here % torch.cuda.device_count()}"
    torch.cuda.set_device(torch_device)
    link.choose_route(torch_device)
    assert link.route.startswith(route)
    return link, torch_device


@pytest.mark.parametrize("route", ["host", "cuda"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("average", ["reduce", "gather"])
@pytest.mark.parametrize("transport", ["mpi", None])
def test_verbs_carry_what_a_busy_gpu_is_still_computing(comm, route, dtype, average, transport):
    link, torch_device = gpu_link(comm, route, dtype, average, transport)
    rounded = lambda x: (  # noqa: E731
        x if dtype == "float32" else torch.from_numpy(oracle.to_bfloat16(x.numpy()))
    )
    busy = torch.rand(2000, 2000, device=torch_device)
    stream = torch.Generator().manual_seed(1)
    vector, into = (torch.zeros(N, device=torch_device) for _ in range(2))
    uplink = torch.zeros(1, N, device=torch_device)
    for _ in range(3):
        down = torch.randn(N, generator=stream)
        ups = torch.randn(link.size, N, generator=stream)
        there = down.to(torch_device), ups[link.rank].to(torch_device)
        for _ in range(20):
            busy = (busy @ busy).clamp_(-1, 1)
        if link.is_server:
            vector.copy_(there[0] + 0 * busy[0, 0])
        else:
            uplink[0].copy_(there[1] + 0 * busy[0, 0])
        link.broadcast(vector)
        assert torch.equal((vector + 0).cpu(), down if link.is_server else rounded(down))
        link.average(uplink, into)
        if link.is_server:
            expected = sum(rounded(ups[rank]) for rank in range(1, link.size))
            torch.testing.assert_close((into + 0).cpu(), expected, rtol=1e-6, atol=1e-6)
        devices = range(1, link.size) if link.is_server else [link.rank]
        rows = {k: there[0] + k if link.is_server else torch.zeros_like(vector) for k in devices}
        link.scatter(rows)
        for k in devices:
            assert torch.equal(rows[k].cpu(), down + k if link.is_server else rounded(down + k))
        to = {k: k % (link.size - 1) + 1 for k in range(1, link.size)}
        mine = {} if link.is_server else {link.rank: there[1]}
        link.permute(mine, to)
        for k in mine:
            (sender,) = (s for s, receiver in to.items() if receiver == k)
            assert torch.equal(mine[k].cpu(), rounded(ups[sender]))


@pytest.mark.parametrize("graphs", ["on", "off"])
@pytest.mark.parametrize("name", ["ren", "fedgan", "mdgan", "uagan"])
def test_rounds_on_gpus_equal_those_on_cpus(comm, name, graphs):
    """Float64, five devices, hosted; D's and G's after six rounds."""
    found = []
    for place in ("cpu", "gpu"):
        config = toy_config(
            algorithm={"name": name},
            training={"graphs": graphs if place == "gpu" else "auto"},
        )
        link = Link(comm)
        torch_device = "cpu"
        if place == "gpu":
            torch_device = f"cuda:{link.rank_here % torch.cuda.device_count()}"
            torch.cuda.set_device(torch_device)
        algorithm = toy_algorithm(link, config, toy_shards(UNEQUAL), torch_device=torch_device)
        play(algorithm, 6)
        found.append([vector.cpu() for vector in vectors(algorithm)])
    if link.is_server:
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)

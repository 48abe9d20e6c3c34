"""Ranks with GPUs; several ranks share a GPU if necessary.

Run them with `mpirun -n 3 python -m pytest --with-mpi -m gpu`.
"""

from __future__ import annotations

import pytest
import torch
from rounding import rounded
from rounds import UNEQUAL
from toys import play, toy_algorithm, toy_config, toy_shards, vectors

from fedgan_mpi.comm.gpu.support import is_gpu_aware
from fedgan_mpi.comm.link import Link
from fedgan_mpi.comm.transfers import Kind
from fedgan_mpi.config import LinkConfig

pytestmark = [
    pytest.mark.mpi(min_size=3),
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]

N = 3_000_017


def choose_gpu(link: Link) -> str:
    """Make this rank's GPU the current device and return its name."""
    torch_device = f"cuda:{link.local_rank % torch.cuda.device_count()}"
    torch.cuda.set_device(torch_device)
    return torch_device


def gpu_link(comm, transport, config: LinkConfig) -> tuple[Link, str]:
    """Return a link and this rank's GPU. Skip if MPI cannot read GPU memory but must."""
    link = Link(comm, transport=transport)
    if config.route == "cuda" and not is_gpu_aware(comm):
        pytest.skip("this MPI library is not CUDA-aware")
    if config.route == "nccl" and torch.cuda.device_count() < link.local_size:
        pytest.skip("ranks share a GPU")
    link.configure(config)
    torch_device = choose_gpu(link)
    lengths: dict[Kind, int] = {"down": N, "sum": N, "point_to_point": N}
    link.choose_route(torch_device, lengths)
    memory = {"host": "pinned host memory", "cuda": "GPU memory", "nccl": "NCCL"}[config.route]
    assert len(link.routes) == 3 and all(f": {memory}, " in route for route in link.routes)
    return link, torch_device


@pytest.mark.parametrize("route", ["host", "cuda", "nccl"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("average", ["reduce", "gather"])
@pytest.mark.parametrize("transport", ["mpi", "polling", "shared_memory"])
def test_verbs_wait_for_a_busy_gpu(comm, route, dtype, average, transport):
    config = LinkConfig(route=route, wire_dtype=dtype, average=average)
    link, torch_device = gpu_link(comm, transport, config)
    busy = torch.rand(2000, 2000, device=torch_device)
    stream = torch.Generator().manual_seed(1)
    vector, total = (torch.zeros(N, device=torch_device) for _ in range(2))
    uplink = torch.zeros(1, N, device=torch_device)
    for _ in range(3):
        down = torch.randn(N, generator=stream)
        ups = torch.randn(link.size, N, generator=stream)
        down_on_gpu, up_on_gpu = down.to(torch_device), ups[link.rank].to(torch_device)
        for _ in range(20):
            busy = (busy @ busy).clamp_(-1, 1)
        if link.is_server:
            vector.copy_(down_on_gpu + 0 * busy[0, 0])
        else:
            uplink[0].copy_(up_on_gpu + 0 * busy[0, 0])

        link.broadcast(vector)
        expected = down if link.is_server else rounded(down, dtype)
        assert torch.equal((vector + 0).cpu(), expected)

        link.reduce(uplink, total)
        if link.is_server:
            expected = sum(rounded(ups[rank], dtype) for rank in range(1, link.size))
            torch.testing.assert_close((total + 0).cpu(), expected, rtol=1e-6, atol=1e-6)

        devices = range(1, link.size) if link.is_server else [link.rank]
        rows = {k: down_on_gpu + k if link.is_server else torch.zeros_like(vector) for k in devices}
        link.scatter(rows)
        for k in devices:
            expected = down + k if link.is_server else rounded(down + k, dtype)
            assert torch.equal(rows[k].cpu(), expected)

        for k in devices:
            rows[k].copy_(0 * down_on_gpu if link.is_server else up_on_gpu + 0 * busy[0, 0])
        link.gather(rows)
        for k in devices:
            expected = rounded(ups[k], dtype) if link.is_server else ups[k]
            assert torch.equal((rows[k] + 0).cpu(), expected)

        receivers = {k: k % (link.size - 1) + 1 for k in range(1, link.size)}
        own = {} if link.is_server else {link.rank: up_on_gpu}
        link.permute(own, receivers)
        for k in own:
            (sender,) = (s for s, receiver in receivers.items() if receiver == k)
            assert torch.equal(own[k].cpu(), rounded(ups[sender], dtype))
    if route == "nccl":
        link.close()


@pytest.mark.parametrize("graphs", ["on", "off"])
@pytest.mark.parametrize("name", ["ren", "fedgan", "mdgan", "uagan"])
def test_rounds_on_gpus_equal_rounds_on_cpus(comm, name, graphs):
    """Parameters in float64 after six rounds of five devices, some of them on one rank."""
    results = []
    for processor in ("cpu", "gpu"):
        link = Link(comm)
        torch_device = choose_gpu(link) if processor == "gpu" else "cpu"
        config = toy_config(
            algorithm={"name": name},
            training={"graphs": graphs if processor == "gpu" else "auto"},
        )
        algorithm = toy_algorithm(link, config, toy_shards(UNEQUAL), torch_device=torch_device)
        play(algorithm, 6)
        results.append([vector.cpu() for vector in vectors(algorithm)])
    if link.is_server:
        for on_gpu, on_cpu in zip(results[1], results[0], strict=True):
            torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-8, atol=1e-10)

"""The verbs that send vectors of single devices: permute, scatter, gather."""

from __future__ import annotations

import pytest
import torch

from fedgan_mpi.comm.link import Link
from fedgan_mpi.config import LinkConfig

pytestmark = pytest.mark.mpi(min_size=3)


@pytest.mark.parametrize("transport", ["mpi", "polling", "shared_memory"])
def test_permute_moves_every_vector_once(comm, transport):
    link = Link(comm, transport=transport)
    devices = 7
    hosted = [
        k for k in range(1, devices + 1) if not link.is_server and link.rank_of(k) == link.rank
    ]
    vectors = {k: torch.full((1000,), float(k)) for k in hosted}
    to = {k: k % devices + 1 for k in range(1, devices + 1)}
    link.permute(vectors, to)
    for k, vector in vectors.items():
        assert (vector == (k - 2) % devices + 1).all()


@pytest.mark.parametrize("transport", ["mpi", "polling", "shared_memory"])
def test_scatter_and_gather_reach_each_device(comm, transport):
    link = Link(comm, transport=transport)
    participants = [1, 3, 4, 6]
    local = [k for k in participants if link.is_server or link.rank_of(k) == link.rank]
    rows = {k: torch.zeros(70_000, dtype=torch.float64) for k in local}
    if link.is_server:
        for k, row in rows.items():
            row.fill_(k)
    link.scatter(rows)
    for k, row in rows.items():
        assert (row == k).all()
        row.mul_(10)
    if link.is_server:
        for row in rows.values():
            row.zero_()
    link.gather(rows)
    assert all((row == 10 * k).all() for k, row in rows.items())
    assert link.bytes_down == link.bytes_up == (70_000 * 8 if local else 0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_permute_keeps_vectors_too_long_for_mpi_to_buffer(comm, dtype):
    """The received vector must not overwrite the sent one before it has left."""
    link = Link(comm)
    link.configure(LinkConfig(wire_dtype=dtype))
    to = {k: k % (link.size - 1) + 1 for k in range(1, link.size)}
    vectors = {} if link.is_server else {link.rank: torch.full((4_000_000,), float(link.rank))}
    for turn in range(1, 4):
        link.permute(vectors, to)
        for k, vector in vectors.items():
            expected = (k - turn - 1) % (link.size - 1) + 1
            assert (vector == expected).all()

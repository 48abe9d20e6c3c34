"""Vectors of single devices, from rank to rank."""

from __future__ import annotations

import pytest
import torch

from fedgan_mpi.comm.link import Link

pytestmark = pytest.mark.mpi(min_size=3)


@pytest.mark.parametrize("transport", ["mpi", "polling", "shared_memory"])
def test_permute_moves_every_vector_once(comm, transport):
    link = Link(comm, transport=transport)
    devices = 7
    mine = [k for k in range(1, devices + 1) if not link.is_server and link.rank_of(k) == link.rank]
    vectors_here = {k: torch.full((1000,), float(k)) for k in mine}
    to = {k: k % devices + 1 for k in range(1, devices + 1)}
    link.permute(vectors_here, to)
    for k, vector in vectors_here.items():
        assert (vector == (k - 2) % devices + 1).all()


@pytest.mark.parametrize("transport", ["mpi", "polling", "shared_memory"])
def test_scatter_and_gather_reach_the_device(comm, transport):
    link = Link(comm, transport=transport)
    present = [1, 3, 4, 6]
    mine = present if link.is_server else [k for k in present if link.rank_of(k) == link.rank]
    rows = {k: torch.zeros(70_000, dtype=torch.float64) for k in mine}
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
    assert link.bytes_down == link.bytes_up == (70_000 * 8 if mine else 0)

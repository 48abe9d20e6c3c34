"""Prefetches: their bits, and the bytes that a round counts."""

from __future__ import annotations

import pytest
import torch
from rounds import UNEQUAL
from toys import play, toy_algorithm, toy_config, toy_shards

from fedgan_mpi.comm.link import Link
from fedgan_mpi.config import LinkConfig

pytestmark = pytest.mark.mpi(min_size=3)

SIZE = 30
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
PARTS = [slice(0, 10), slice(10, 20), slice(20, 30), slice(0, 30)]


def server_vector() -> torch.Tensor:
    """Numbers that 16 bits cannot hold."""
    return torch.rand(SIZE, generator=torch.Generator().manual_seed(3)) + 1e-3


def own_vector(link: Link) -> torch.Tensor:
    return server_vector() if link.is_server else torch.full((SIZE,), -1.0)


@pytest.mark.parametrize("transport", ["mpi", "polling", "shared_memory"])
@pytest.mark.parametrize("wire_dtype", BYTES)
@pytest.mark.parametrize("part", PARTS, ids=str)
def test_a_prefetch_changes_neither_bits_nor_bytes(comm, transport, wire_dtype, part):
    link = Link(comm, transport=transport)
    link.configure(LinkConfig(wire_dtype=wire_dtype))
    plain, ahead = own_vector(link), own_vector(link)
    link.broadcast(plain)
    assert link.bytes_down == SIZE * BYTES[wire_dtype]
    link.reset_counters()
    link.prefetch(ahead[part])
    assert (link.bytes_down, link.seconds_down) == (0, 0.0)
    if not link.is_server:
        assert torch.equal(ahead[part], plain[part])
    link.broadcast(ahead)
    assert torch.equal(ahead, plain) and link.bytes_down == SIZE * BYTES[wire_dtype]
    if not link.is_server:
        ahead.fill_(-2.0)
    link.broadcast(ahead)  # whole again
    assert torch.equal(ahead, plain) and not link.has_prefetched(ahead[part])
    assert link.bytes_down == 2 * SIZE * BYTES[wire_dtype]


def test_the_bytes_of_a_prefetch_count_in_the_round_of_its_broadcast(comm):
    link = Link(comm)
    vector = own_vector(link)
    for _ in range(3):
        link.reset_counters()
        link.broadcast(vector)
        link.prefetch(vector[10:])
        assert link.bytes_down == SIZE * 4


def test_a_broadcast_of_something_else_keeps_the_prefetch(comm):
    link = Link(comm)
    vector, other = own_vector(link), own_vector(link)
    link.prefetch(vector[:10])
    link.broadcast(other)
    assert link.has_prefetched(vector[:10]) and link.bytes_down == SIZE * 4
    if not link.is_server:
        vector[:10] = -2.0
    link.broadcast(vector)
    sent_again = torch.equal(vector[:10], server_vector()[:10])
    assert sent_again == link.is_server and torch.equal(vector[10:], server_vector()[10:])


@pytest.mark.parametrize("count", [2, 5])
def test_rounds_count_the_same_bytes_with_and_without_overlap(comm, count):
    lines = []
    for prefetches in (True, False):
        link = Link(comm)
        options = {"participation": {"policy": "round_robin", "count": count}}
        algorithm = toy_algorithm(link, toy_config(**options), toy_shards(UNEQUAL))
        link.prefetches = prefetches
        lines.append(play(algorithm, 4))
    keys = ("bytes_down", "bytes_up", "bytes_down_other", "bytes_up_other")
    ahead, plain = ([[line[key] for key in keys] for line in run] for run in lines)
    assert ahead == plain and all(all(numbers) for numbers in ahead)

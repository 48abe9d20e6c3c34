"""Between a GPU and MPI, with a stand-in for the GPU: what is handed out, and in which order."""

from __future__ import annotations

import pytest
import torch
from fake_gpu import FakeGpu

from fedgan_mpi.comm import gpu_staging as staging
from fedgan_mpi.comm.gpu_staging import Staging


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(staging, "PIECE", 40)  # ten float32 numbers


def test_what_goes_out_is_what_was_computed_and_the_next_piece_is_under_way():
    gpu = FakeGpu()
    vector = gpu.vector(torch.zeros(35))
    transport = Staging(gpu, direct=False)
    for turn in range(3):
        values = torch.arange(35.0) + turn
        gpu.compute(vector, values)
        gpu.calls.clear()
        sent = []
        for piece in transport.outgoing(vector, "out"):
            sent.append(piece.clone())
            gpu.calls.append(f"send {len(sent)}")
        assert torch.equal(torch.cat(sent), values)
        assert [len(piece) for piece in sent] == [10, 10, 10, 5]
        first = 4 * turn + 1
        expected = ["follow", f"copy {first}"]
        for n in range(4):
            expected += [f"copy {first + n + 1}"] if n < 3 else []
            expected += [f"wait {first + n}", f"send {n + 1}"]
        assert [call for call in gpu.calls if call != "pinned"] == expected
    assert len(gpu.buffers) == 2  # taken once


def test_what_comes_in_lands_while_the_next_piece_is_received():
    gpu = FakeGpu()
    vector = gpu.vector(torch.full((35,), -1.0))
    transport = Staging(gpu, direct=False)
    for turn in range(3):
        values = torch.arange(35.0) + turn
        gpu.calls.clear()
        start = 0
        for n, buffer in enumerate(transport.incoming(vector, "in"), start=1):
            gpu.calls.append(f"receive {n}")
            buffer.copy_(values[start : start + len(buffer)])
            start += len(buffer)
        assert torch.equal(vector, values)
        first = 4 * turn + 1
        assert [call for call in gpu.calls if call != "pinned"] == [
            "follow",
            "receive 1", f"copy {first}",
            "receive 2", f"copy {first + 1}",
            f"wait {first}", "receive 3", f"copy {first + 2}",  # its buffer is free
            f"wait {first + 1}", "receive 4", f"copy {first + 3}",
            "lead", f"wait {first + 3}",
        ]  # fmt: skip
    assert gpu.idle and len(gpu.buffers) == 2


def test_whole_vectors_go_and_land():
    gpu = FakeGpu()
    vector = gpu.vector(torch.zeros(35))
    transport = Staging(gpu, direct=False)
    gpu.compute(vector, torch.ones(35))
    host = transport.whole(vector, "down", load=True)
    assert torch.equal(host, torch.ones(35)) and not gpu.owns(host)
    host = transport.whole(vector, "down", load=False)
    host.fill_(3.0)
    transport.copy_back(vector, host)
    assert torch.equal(vector, torch.full((35,), 3.0)) and gpu.idle
    assert len(gpu.buffers) == 1


def test_the_direct_route_hands_out_the_gpus_memory_synchronized():
    gpu = FakeGpu()
    vector = gpu.vector(torch.zeros(35))
    transport = Staging(gpu, direct=True)
    for pieces in (transport.outgoing, transport.incoming):
        gpu.compute(vector, torch.rand(35))
        gpu.calls.clear()
        (piece,) = pieces(vector, "any")
        assert piece is vector and gpu.calls == ["synchronize"]
    gpu.calls.clear()
    assert transport.whole(vector, "down", load=True) is vector and gpu.calls == ["synchronize"]
    transport.copy_back(vector, vector)
    assert not gpu.buffers and gpu.calls == ["synchronize"]


def test_a_rank_without_a_gpu_sends_the_same_pieces():
    """On a node of its own: its collectives must fit those of the others."""
    transport, vector = Staging(None, direct=False), torch.arange(35.0)
    pieces = list(transport.outgoing(vector, "out"))
    assert [len(piece) for piece in pieces] == [10, 10, 10, 5]
    assert torch.equal(torch.cat(pieces), vector)
    for piece in transport.incoming(vector, "in"):
        piece.zero_()
    assert not vector.any()
    assert transport.whole(vector, "down", load=True) is vector


def test_rows_of_two_directions_do_not_share_buffers():
    gpu = FakeGpu()
    transport = Staging(gpu, direct=False)
    mine, total = gpu.vector(torch.arange(25.0)), gpu.vector(torch.zeros(25))
    for piece, into in zip(
        transport.outgoing(mine, "out"), transport.incoming(total, "in"), strict=True
    ):
        into.copy_(2 * piece)
    assert torch.equal(total, 2 * torch.arange(25.0)) and gpu.idle

"""Staging with a fake GPU: values, chunks, and the order of copies and waits."""

from __future__ import annotations

import pytest
import torch
from fake_gpu import FakeGpu

from fedgan_mpi.comm.gpu.staging import Staging


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr("fedgan_mpi.comm.gpu.staging.CHUNK_BYTES", 40)  # ten float32 numbers


def stream_calls(gpu: FakeGpu) -> list[str]:
    return [call for call in gpu.calls if call != "pinned"]


def test_outgoing_chunks_have_the_computed_values_while_the_next_is_copied():
    gpu = FakeGpu()
    vector = gpu.vector(torch.zeros(35))
    staging = Staging(gpu, direct=False)
    for turn in range(3):
        values = torch.arange(35.0) + turn
        gpu.compute(vector, values)
        gpu.calls.clear()
        sent = []
        for chunk in staging.outgoing(vector, "out"):
            sent.append(chunk.clone())
            gpu.calls.append(f"send {len(sent)}")
        assert torch.equal(torch.cat(sent), values)
        assert [len(chunk) for chunk in sent] == [10, 10, 10, 5]
        first = 4 * turn + 1
        assert stream_calls(gpu) == [
            "copies wait", f"copy {first}",
            f"copy {first + 1}", f"wait {first}", "send 1",
            f"copy {first + 2}", f"wait {first + 1}", "send 2",
            f"copy {first + 3}", f"wait {first + 2}", "send 3",
            f"wait {first + 3}", "send 4",
        ]  # fmt: skip
    assert len(gpu.buffers) == 2  # allocated once


def test_incoming_chunks_are_copied_while_the_next_is_received():
    gpu = FakeGpu()
    vector = gpu.vector(torch.full((35,), -1.0))
    staging = Staging(gpu, direct=False)
    for turn in range(3):
        values = torch.arange(35.0) + turn
        gpu.calls.clear()
        start = 0
        for n, buffer in enumerate(staging.incoming(vector, "in"), start=1):
            gpu.calls.append(f"receive {n}")
            buffer.copy_(values[start : start + len(buffer)])
            start += len(buffer)
        assert torch.equal(vector, values)
        first = 4 * turn + 1
        assert stream_calls(gpu) == [
            "copies wait",
            "receive 1", f"copy {first}",
            "receive 2", f"copy {first + 1}",
            f"wait {first}", "receive 3", f"copy {first + 2}",  # the first buffer is free
            f"wait {first + 1}", "receive 4", f"copy {first + 3}",
            "compute waits", f"wait {first + 3}",
        ]  # fmt: skip
    assert gpu.idle and len(gpu.buffers) == 2


def test_a_whole_vector_is_copied_to_its_buffer_and_back():
    gpu = FakeGpu()
    vector = gpu.vector(torch.zeros(35))
    staging = Staging(gpu, direct=False)
    gpu.compute(vector, torch.ones(35))
    host = staging.mpi_buffer(vector, "down", load=True)
    assert torch.equal(host, torch.ones(35)) and not gpu.owns(host)
    host = staging.mpi_buffer(vector, "down", load=False)
    host.fill_(3.0)
    staging.copy_back(vector, host)
    assert torch.equal(vector, torch.full((35,), 3.0)) and gpu.idle
    assert len(gpu.buffers) == 1


def test_direct_staging_synchronizes_and_returns_gpu_memory():
    gpu = FakeGpu()
    vector = gpu.vector(torch.zeros(35))
    staging = Staging(gpu, direct=True)
    for chunks in (staging.outgoing, staging.incoming):
        gpu.compute(vector, torch.rand(35))
        gpu.calls.clear()
        (chunk,) = chunks(vector, "any")
        assert chunk is vector and gpu.calls == ["synchronize"]
    gpu.calls.clear()
    assert staging.mpi_buffer(vector, "down", load=True) is vector
    assert gpu.calls == ["synchronize"]
    staging.copy_back(vector, vector)
    assert not gpu.buffers and gpu.calls == ["synchronize"]


def test_a_rank_without_a_gpu_uses_equal_chunks():
    """Its collectives must match the collectives of ranks with a GPU."""
    staging, vector = Staging(None, direct=False), torch.arange(35.0)
    chunks = list(staging.outgoing(vector, "out"))
    assert [len(chunk) for chunk in chunks] == [10, 10, 10, 5]
    assert torch.equal(torch.cat(chunks), vector)
    for chunk in staging.incoming(vector, "in"):
        chunk.zero_()
    assert not vector.any()
    assert staging.mpi_buffer(vector, "down", load=True) is vector


def test_both_directions_at_once_use_separate_buffers():
    gpu = FakeGpu()
    staging = Staging(gpu, direct=False)
    source, total = gpu.vector(torch.arange(25.0)), gpu.vector(torch.zeros(25))
    chunks = zip(staging.outgoing(source, "out"), staging.incoming(total, "in"), strict=True)
    for sent, received in chunks:
        received.copy_(2 * sent)
    assert torch.equal(total, 2 * torch.arange(25.0)) and gpu.idle

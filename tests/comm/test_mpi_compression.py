"""The link's verbs with a 16-bit wire: received values, and bytes handed to MPI."""

from __future__ import annotations

import pytest
import torch
from mpi4py import MPI
from rounding import ROUNDINGS, rounded

from fedgan_mpi.comm.link import Link
from fedgan_mpi.comm.shared_memory import Channel
from fedgan_mpi.config import LinkConfig

pytestmark = pytest.mark.mpi(min_size=3)


@pytest.mark.parametrize("transport", ["mpi", "polling", "shared_memory"])
@pytest.mark.parametrize("dtype", ROUNDINGS)
def test_receivers_get_rounded_values(comm, transport, dtype):
    link = Link(comm, transport=transport)
    link.configure(LinkConfig(wire_dtype=dtype))
    devices = range(1, link.size)
    hosted = devices if link.is_server else [link.rank]
    to = {k: k % (link.size - 1) + 1 for k in devices}
    stream = torch.Generator().manual_seed(1)
    for _ in range(3):
        down = torch.randn(5000, generator=stream)
        ups = torch.randn(link.size, 2, 5000, generator=stream)
        vector = down.clone() if link.is_server else torch.zeros(5000)
        link.broadcast(vector)
        assert torch.equal(vector, down if link.is_server else rounded(down, dtype))
        exact = down.clone() if link.is_server else torch.zeros(5000)
        link.broadcast_exact(exact)
        assert torch.equal(exact, down)

        into = torch.full((5000,), 9.0)
        link.reduce(torch.zeros(2, 5000) if link.is_server else ups[link.rank].clone(), into)
        expected = torch.zeros(5000)
        for row in range(2):
            for rank in devices:
                expected += rounded(ups[rank, row], dtype)
        assert torch.equal(into, expected if link.is_server else torch.full((5000,), 9.0))

        rows = {k: (down + k if link.is_server else torch.zeros(5000)) for k in hosted}
        link.scatter(rows)
        for k in hosted:
            assert torch.equal(rows[k], down + k if link.is_server else rounded(down + k, dtype))
        rows = {k: (torch.zeros(5000) if link.is_server else ups[k, 0].clone()) for k in hosted}
        link.gather(rows)
        for k in hosted:
            received = rounded(ups[k, 0], dtype)
            assert torch.equal(rows[k], received if link.is_server else ups[k, 0])

        moving = {} if link.is_server else {link.rank: ups[link.rank, 1].clone()}
        link.permute(moving, to)
        for k in moving:
            (source,) = (sender for sender, receiver in to.items() if receiver == k)
            assert torch.equal(moving[k], rounded(ups[source, 1], dtype))


GATHERED_SUMS = ("Gatherv",)
UPLINK = ("Reduce", "Gather", "Alltoallv", *GATHERED_SUMS)


class RecordingComm:
    """A communicator that records (method, dtype, bytes) of its buffers."""

    def __init__(self, comm: MPI.Comm) -> None:
        self._comm, self.records = comm, []

    def __getattr__(self, name):
        method = getattr(self._comm, name)
        if name not in (*UPLINK, "Bcast", "Isend", "Irecv"):
            return method

        def record(buffer, *arguments, **options):
            vector, counts = buffer if name == "Alltoallv" else (buffer, None)
            nbytes = vector.nbytes if counts is None else vector.itemsize * sum(counts[0])
            if name not in UPLINK or self._comm.rank > 0:  # the server sends nothing up
                self.records.append((name, vector.dtype, nbytes))
            return method(buffer, *arguments, **options)

        return record


@pytest.mark.parametrize("transport", ["mpi", "polling"])
@pytest.mark.parametrize("average", ["reduce", "gather"])
def test_mpi_transfers_half_the_bytes_and_adds_no_16_bit_numbers(comm, transport, average):
    transferred = {}
    for dtype in ("float32", "bfloat16"):
        recorder = RecordingComm(comm)
        link = Link(recorder, transport=transport)
        link.configure(LinkConfig(wire_dtype=dtype, average=average))
        link.broadcast(torch.zeros(1000))
        link.reduce(torch.zeros(1, 1000), torch.zeros(1000))
        hosted = range(1, link.size) if link.is_server else [link.rank]
        link.scatter({k: torch.zeros(1000) for k in hosted})
        link.gather({k: torch.zeros(1000) for k in hosted})
        if not link.is_server:
            to = {k: k % (link.size - 1) + 1 for k in range(1, link.size)}
            link.permute({link.rank: torch.zeros(1000)}, to)
        else:
            link.permute({}, {})
        sums = [each for each in recorder.records if each[0] in GATHERED_SUMS]
        messages = [each for each in recorder.records if each[0] not in GATHERED_SUMS]
        transferred[dtype] = sum(nbytes for _, _, nbytes in messages)
        counted = (link.bytes_down, link.bytes_up)
        if dtype == "bfloat16":
            assert {kind for _, kind, _ in messages} == {torch.int16}
            assert "Reduce" not in {name for name, _, _ in messages}
            # More than two device ranks add one slice each, and gather the sums in float32.
            slices = [1000 * rank // (link.size - 1) for rank in range(link.size)]
            own = [4 * (slices[r] - slices[r - 1]) for r in [link.rank] if r and link.size > 3]
            assert sums == [("Gatherv", torch.float32, nbytes) for nbytes in own]
            assert counted == (4000, 6000 if not link.is_server else 4000)
        else:
            assert counted == (8000, 12000 if not link.is_server else 8000)
            reduces = average == "reduce" and not link.is_server
            assert ("Reduce" in {name for name, _, _ in messages}) == reduces
    assert 2 * transferred["bfloat16"] == transferred["float32"] > 0


def test_shared_memory_transfers_half_the_bytes(comm, monkeypatch):
    transferred = []
    down, up = Channel.down, Channel.up

    def record_down(channel, vector):
        transferred.append(("down", vector.nbytes))
        down(channel, vector)

    def record_up(channel, vector, consume):
        transferred.append(("up", vector.nbytes))
        up(channel, vector, consume)

    link = Link(comm, transport="shared_memory")
    link.configure(LinkConfig(wire_dtype="float16"))
    monkeypatch.setattr(Channel, "down", record_down)
    monkeypatch.setattr(Channel, "up", record_up)
    link.broadcast(torch.zeros(1000))
    link.reduce(torch.zeros(1, 500), torch.zeros(500))
    assert transferred == [("down", 2000), ("up", 1000)]

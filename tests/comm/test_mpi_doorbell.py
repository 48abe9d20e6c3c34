"""The sockets that wake sleeping ranks: who can ring."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from pathlib import Path

import pytest

from fedgan_mpi.comm.shared_memory import Doorbell

pytestmark = [
    pytest.mark.mpi(min_size=3),
    pytest.mark.skipif(not Doorbell.is_supported(), reason="needs Linux on x86-64"),
]


def unix_sockets() -> set[str]:
    """Return the abstract names of this process's datagram sockets."""
    own = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the directory itself, which is closed again
            own.add(os.readlink(f"/proc/self/fd/{name}").removeprefix("socket:[").rstrip("]"))
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return {line[7] for line in lines if line[6] in own and len(line) > 7 and line[4] == "0002"}


def test_other_processes_cannot_wake_a_rank(comm):
    before = unix_sockets()
    doorbell = Doorbell(comm)
    own = unix_sockets() - before
    assert len(own) == (comm.size - 1 if comm.rank == 0 else 1)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as foreign:
        for name in own:
            with pytest.raises(PermissionError):
                foreign.sendto(b"!", name.replace("@", "\0", 1))
            with pytest.raises(PermissionError):
                foreign.connect(name.replace("@", "\0", 1))
    comm.barrier()
    start, tries = time.monotonic(), []
    if comm.rank == 0:
        for rank in range(1, comm.size):
            doorbell.ring(rank)
    else:  # the condition is tested before sleep, and after a datagram or half a second
        doorbell.sleep_until(lambda: tries.append(1) or len(tries) > 1)
        assert time.monotonic() - start < 0.4

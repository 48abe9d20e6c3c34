"""Topology and shared files on several ranks of one machine."""

from __future__ import annotations

import os

import pytest

from fedgan_mpi.errors import AgreedError
from fedgan_mpi.hardware import shared_files
from fedgan_mpi.hardware.cpu import usable_cores
from fedgan_mpi.hardware.shared_files import map_shared_memory
from fedgan_mpi.hardware.topology import survey

pytestmark = pytest.mark.mpi(min_size=3)


def test_the_survey_counts_local_ranks_and_cores(comm):
    machine = survey(comm)
    assert (machine.local_size, machine.local_rank) == (comm.size, comm.rank)
    assert machine.is_only_machine
    assert 1 <= machine.cores <= len(usable_cores())
    assert machine.oversubscribed == (comm.size > machine.cores)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_common_cores_are_empty_if_affinity_differs(comm):
    cores = usable_cores()
    if comm.allreduce(len(cores)) != comm.size * len(cores) or len(cores) < 2:
        pytest.skip("needs ranks with the same cores, at least two")
    try:
        if comm.rank == 1:
            os.sched_setaffinity(0, {min(cores)})
        assert survey(comm).common_cores == []
    finally:
        os.sched_setaffinity(0, cores)


def test_shared_memory_is_zero_at_first_and_visible_to_all(comm):
    memory = map_shared_memory(comm, comm.size)
    assert memory[:] == bytes(comm.size)
    comm.barrier()
    memory[comm.rank] = comm.rank + 1
    comm.barrier()
    assert memory[:] == bytes(range(1, comm.size + 1))


def test_missing_space_is_an_error_on_every_rank(comm, monkeypatch):
    def raise_no_space(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shared_files.os, "posix_fallocate", raise_no_space)
    with pytest.raises(AgreedError, match=r"neither /dev/shm nor .* has 5 MB"):
        map_shared_memory(comm, 5_000_000)

"""Topology and shared files on several ranks of one machine."""

from __future__ import annotations

import os
import sys
import tempfile

import pytest

from fedgan_mpi.errors import AgreedError
from fedgan_mpi.hardware import shared_files
from fedgan_mpi.hardware.cpu import usable_cores
from fedgan_mpi.hardware.shared_files import map_shared_memory, open_shared_file
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


def test_shared_memory_has_no_name_that_a_kill_could_leave_behind(comm):
    """Every path that the program passes to the system is recorded."""
    paths, recording = [], True
    before = set(os.listdir("/dev/shm"))

    def record(event, arguments):
        if recording and event in ("open", "os.link", "os.rename", "os.remove"):
            paths.append(str(arguments[0]))

    sys.addaudithook(record)
    with open_shared_file(comm, 4096) as file:
        recording = False
        comm.barrier()
        assert os.fstat(file.fileno()).st_nlink == 0
        assert os.fstat(file.fileno()).st_blocks * 512 >= 4096
    directories = {"/dev/shm", tempfile.gettempdir()}
    assert [path for path in paths if path not in directories and "/proc/" not in path] == []
    left = {name for name in set(os.listdir("/dev/shm")) - before if "fedgan" in name}
    assert not left


def test_a_file_of_another_process_is_not_taken_for_the_own(comm, monkeypatch):
    """As in containers with their own PID namespaces."""
    if comm.rank == 2:
        monkeypatch.setattr(os, "stat", lambda path: os.stat_result(range(10)))
    with pytest.raises(AgreedError, match="a rank cannot open another rank's file"):
        open_shared_file(comm, 4096)


def test_missing_space_is_an_error_on_every_rank(comm, monkeypatch):
    def raise_no_space(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shared_files.os, "posix_fallocate", raise_no_space)
    with pytest.raises(AgreedError, match=r"neither /dev/shm nor .* has 5 MB"):
        map_shared_memory(comm, 5_000_000)

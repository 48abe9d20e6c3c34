"""The choice of the transport from the machine topology."""

from __future__ import annotations

import pytest

from fedgan_mpi.comm.communicator import Communicator
from fedgan_mpi.comm.routes import can_survive
from fedgan_mpi.comm.shared_memory import Doorbell
from fedgan_mpi.comm.transport import choose_transport
from fedgan_mpi.hardware.topology import Machine


@pytest.mark.parametrize(
    ("oversubscribed", "is_only_machine", "supported", "expected"),
    [
        (False, True, True, "mpi"),
        (False, False, True, "mpi"),
        (True, True, True, "shared_memory"),
        (True, False, True, "polling"),
        (True, True, False, "polling"),
    ],
)
def test_the_transport_depends_on_cores_and_machines(
    monkeypatch, oversubscribed, is_only_machine, supported, expected
):
    monkeypatch.setattr(Doorbell, "is_supported", lambda: supported)
    machine = Machine(
        local_size=4,
        local_rank=0,
        cores=2 if oversubscribed else 8,
        common_cores=[],
        oversubscribed=oversubscribed,
        is_only_machine=is_only_machine,
    )
    assert choose_transport(machine) == expected


@pytest.mark.parametrize(
    ("library", "requested", "expected"),
    [
        ("Open MPI v5.0.10", "1", True),
        ("Open MPI v5.0.10", "0", False),
        ("Open MPI v5.0.10", None, False),
        ("MPICH Version: 5.0.2", "1", False),
    ],
)
def test_deaths_are_survivable_under_open_mpi_if_requested(
    library, requested, expected, monkeypatch
):
    """mpirun --with-ft ulfm sets the variable."""
    monkeypatch.setattr(Communicator, "library", staticmethod(lambda: library))
    monkeypatch.delenv("OMPI_MCA_mpi_ft_enable", raising=False)
    if requested is not None:
        monkeypatch.setenv("OMPI_MCA_mpi_ft_enable", requested)
    assert can_survive() == expected

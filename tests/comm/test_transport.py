"""The choice of the transport from the machine topology."""

from __future__ import annotations

import pytest

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

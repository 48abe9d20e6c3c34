"""Choice of the transport between ranks."""

from __future__ import annotations

from typing import Literal

from fedgan_mpi.comm.shared_memory import Doorbell
from fedgan_mpi.hardware.topology import Machine

Transport = Literal["mpi", "polling", "shared_memory"]


def choose_transport(machine: Machine) -> Transport:
    """Return the fastest transport for this machine, the same on every rank.

    `mpi` if every rank has a core to wait on. Otherwise `shared_memory` if all ranks share one
    machine that supports it, and `polling` if not.
    """
    if not machine.oversubscribed:
        return "mpi"
    single = machine.is_only_machine and Doorbell.is_supported()
    return "shared_memory" if single else "polling"

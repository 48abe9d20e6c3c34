"""The run lock: only one job at a time writes a run directory."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from fedgan_mpi.errors import UserError
from fedgan_mpi.files import explain_write_errors

LOCK = ".lock"
_descriptors: list[int] = []
"""Open lock files. The kernel releases their locks when the process ends."""


def acquire_lock(run: Path) -> None:
    """Lock a run directory until `release_lock` or the end of the process.

    Raises UserError if another job holds the lock. File systems without locks are not protected.
    """
    with explain_write_errors(run):
        descriptor = os.open(run / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(
            f"{run} is being written by another job; wait until it ends, or use another --run.name "
            f"(if that job's machine has crashed and the lock remains, delete {run / LOCK})"
        ) from None
    except OSError:
        pass
    _descriptors.append(descriptor)


def release_lock() -> None:
    """Release every lock of this process."""
    while _descriptors:
        os.close(_descriptors.pop())

"""The run lock: only one job at a time writes a run directory."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
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
        descriptor = os.open(run / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    was_open = _restrict(descriptor, run)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        also = ", or another user holds the lock, which was readable to all" if was_open else ""
        raise UserError(
            f"{run} is being written by another job; wait until it ends, or use another --run.name "
            f"(if that job's machine has crashed and the lock remains{also}, delete {run / LOCK})"
        ) from None
    except OSError:
        pass
    _descriptors.append(descriptor)


def _restrict(descriptor: int, run: Path) -> bool:
    """Let only those users open the lock who may write the run directory, and return whether more
    could.

    A user who can open a file, even to read it, can hold its lock.
    """
    writers = os.stat(run).st_mode & 0o022
    mode = 0o600 | writers | writers << 1  # to read and to write
    before = os.fstat(descriptor).st_mode & 0o777
    with suppress(OSError):  # it belongs to another user of the group
        os.fchmod(descriptor, mode)
    return before & ~mode != 0


def release_lock() -> None:
    """Release every lock of this process."""
    while _descriptors:
        os.close(_descriptors.pop())

"""One job at a time writes a run directory."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from fedgan_mpi.errors import UserError
from fedgan_mpi.files import writing

LOCK = ".lock"
_held: list[int] = []  # open files: the kernel lets go of their locks when a process ends


def acquire_lock(run: Path) -> None:
    """Keep other jobs from writing this run until `release`, or the end of the process.

    Raises UserError where another job has it. Where the file system has no locks, nobody is kept
    from anything.
    """
    with writing(run):
        descriptor = os.open(run / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(
            f"{run} is being written by another job; wait for its end or give another --run.name "
            f"(where that job's node has died and its file server holds on, delete {run / LOCK})"
        ) from None
    except OSError:
        pass
    _held.append(descriptor)


def release_lock() -> None:
    """Let other jobs have what this one claimed."""
    while _held:
        os.close(_held.pop())

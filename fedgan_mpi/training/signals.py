"""Signals that ask a job to end, which are noted when they come and obeyed after the round; and
those of a crash, which say where it was.

Known to the process before anything slow is imported: SLURM may signal a job that has only begun.
"""

from __future__ import annotations

import faulthandler
import os
import signal
from types import FrameType

REQUEUE = 75
"""Exit status of a job that was asked to end and can go on: sysexits.h's EX_TEMPFAIL."""
INTERRUPTED = 130
"""Of one that a person interrupted, as shells have it; it can go on, too."""

_REQUESTS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
_noted: list[signal.Signals] = []


def listen() -> None:
    """From now on signals are noted; a second SIGINT leaves at once. A library's crash shows the
    stack of Python that led to it, which dies without a word otherwise."""
    faulthandler.enable()
    for request in _REQUESTS:
        signal.signal(request, _note)


def ignore_no_more() -> None:
    """Signals act as ever, for commands that leave nothing half done; one already noted acts
    now."""
    for request in _REQUESTS:
        signal.signal(request, signal.default_int_handler if request == signal.SIGINT else 0)
    for request in _noted:
        os.kill(os.getpid(), request)


def requeue_asked() -> bool:
    """Whether this process was told that its time is up."""
    return any(request != signal.SIGINT for request in _noted)


def interrupted() -> bool:
    """Whether somebody pressed Ctrl-C."""
    return signal.SIGINT in _noted


def _note(number: int, frame: FrameType | None) -> None:
    request = signal.Signals(number)
    if request == signal.SIGINT and interrupted():
        os._exit(INTERRUPTED)
    _noted.append(request)

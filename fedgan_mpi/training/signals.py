"""Signals that ask a job to stop; the loop obeys them after the round.

The handlers are installed before slow imports, because SLURM may signal a job that has just begun.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
from types import FrameType

REQUEUE = 75
"""Exit status of a job that was asked to stop and can be resumed: EX_TEMPFAIL of sysexits.h."""
INTERRUPTED = 130
"""Exit status after Ctrl-C, as in shells; the job can be resumed."""

_HANDLED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)
_received: list[signal.Signals] = []


def install() -> None:
    """Record signals instead of dying; a second SIGINT ends the process at once.

    SIGHUP stays ignored under `nohup`, which asks for a job that outlives its terminal.
    A crash of a library prints the Python stack that led to it.
    """
    if sys.stderr is not None:
        faulthandler.enable()
    for number in _HANDLED:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _record)


def reapply() -> None:
    """Take signals back from libraries, after MPI is loaded: UCX handles SIGHUP in its own way."""
    for number in _HANDLED:
        handler = signal.getsignal(number)  # as Python knows it
        if handler in (_record, signal.SIG_IGN):
            signal.signal(number, handler)


def restore_defaults() -> None:
    """Restore the default handlers, for commands that can be killed at any time. A signal received
    before takes effect now."""
    for number in _HANDLED:
        default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        if signal.getsignal(number) == _record:
            signal.signal(number, default)
    for received in _received:
        os.kill(os.getpid(), received)


def requeue_requested() -> bool:
    """Whether this process received SIGTERM, SIGUSR1 or SIGHUP."""
    return any(received != signal.SIGINT for received in _received)


def interrupted() -> bool:
    """Whether this process received SIGINT."""
    return signal.SIGINT in _received


def _record(number: int, frame: FrameType | None) -> None:
    received = signal.Signals(number)
    if received == signal.SIGINT and interrupted():
        os._exit(INTERRUPTED)
    _received.append(received)

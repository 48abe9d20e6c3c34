"""Bounds of time and memory for decoding one image, so that a hostile file harms no other."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits on the time and memory to decode one image."""

    seconds: float = 60.0
    memory: int = 4096
    """MiB beyond what a decoding process takes at its start."""


DEFAULT_LIMITS = Limits()


class TooSlow(Exception):
    """Decoding an image takes longer than it may."""


@contextlib.contextmanager
def limit_time(seconds: float, *, may_end_process: bool) -> Iterator[Callable[[], None]]:
    """Yield a function that begins to count the time of an image.

    The block raises TooSlow if more time passes before the next call or the end. Without effect
    outside of a main thread. may_end_process: whether a decoder that never returns to Python may
    end this process, after twice as much processor time.
    """
    if not hasattr(signal, "setitimer") or (
        threading.current_thread() is not threading.main_thread()
    ):
        yield lambda: None
        return

    def interrupt(*_: Any) -> None:
        raise TooSlow(f"decoding takes longer than {seconds:g} s")

    def begin() -> None:
        # Again every second, because a library may take TooSlow for a damaged file and go on.
        signal.setitimer(signal.ITIMER_REAL, seconds, 1)
        if may_end_process:  # the system itself ends the process; Python would not run a handler
            signal.setitimer(signal.ITIMER_PROF, 2 * seconds)

    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        yield begin
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        if may_end_process:
            signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGALRM, previous)


def limit_memory(mebibytes: int) -> None:
    """Let allocations of this process fail beyond a bound, from now on. Only where Linux counts."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError):
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = pages * os.sysconf("SC_PAGE_SIZE") + mebibytes * 2**20
    if hard == resource.RLIM_INFINITY or most < hard:
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))

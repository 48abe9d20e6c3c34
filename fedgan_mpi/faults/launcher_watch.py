"""Ends a rank whose launcher has died. Otherwise the rank would run on, and its output be lost.

The launcher is the ancestor that started the ranks of this machine, such as Hydra's proxy. The
kernel can signal the death of a parent, but the launcher may start ranks through a shell. That
signal also depends on the parent's thread.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_LAUNCHERS = frozenset(
    (
        "hydra_pmi_proxy", "pmi_proxy", "orted", "prted", "prterun", "slurmstepd", "mpirun",
        "mpiexec", "mpiexec.hydra", "mpiexec.gforker",
    )
)  # fmt: skip
"""Names of processes that start ranks and outlive them. The kernel cuts names after 15 bytes."""

_watched: set[int] = set()
"""Processes in which a thread watches, so that a second link starts none."""


def find_launcher() -> tuple[int, str] | None:
    """Return process number and name of this process's launcher; None if it has none or if the
    launcher is outside of its container."""
    process = os.getppid()
    with suppress(OSError, ValueError, IndexError):  # no /proc, or a process that has just ended
        while process > 1:
            stat = Path(f"/proc/{process}/stat").read_text(errors="replace")
            name = stat[stat.index("(") + 1 : stat.rindex(")")]
            if name in _LAUNCHERS:
                return process, name
            process = int(stat[stat.rindex(")") + 1 :].split()[1])
    return None


def watch_launcher(on_death: Callable[[str], None]) -> None:
    """Call `on_death` in a thread, with a sentence, when the launcher of this process has died.

    Does nothing without a launcher, on systems without pidfd_open, or if called again.
    """
    launcher = find_launcher()
    if launcher is None or os.getpid() in _watched or not hasattr(os, "pidfd_open"):
        return
    process, name = launcher
    try:
        descriptor = os.pidfd_open(process)
    except OSError:  # an old kernel
        return
    _watched.add(os.getpid())

    def wait() -> None:
        select.select([descriptor], [], [])
        on_death(f"the launcher {name} (process {process}) has died, and the job ends")

    threading.Thread(target=wait, name="launcher watch", daemon=True).start()

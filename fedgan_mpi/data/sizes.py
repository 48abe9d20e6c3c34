"""Checks declared sizes before memory is reserved for them.

A file of a few kilobytes can declare an array of terabytes, or unpack to gigabytes.
"""

from __future__ import annotations

import os
from pathlib import Path

_SUSPICIOUS_RATIO = 200
"""No compressed images are that much smaller than their pixels. Zeros shrink 1000-fold."""
_HARMLESS_BYTES = 2**28
"""Data of this size may be as compressible as it likes."""
_CGROUP = Path("/sys/fs/cgroup/memory.max")


def machine_memory() -> int:
    """Return the bytes of memory that this process may use at most."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(memory, int(_CGROUP.read_text()))
    except (OSError, ValueError):  # no cgroup, or "max"
        return memory


def check_sizes(packed: int, unpacked: int) -> None:
    """Raise ValueError if `unpacked` bytes cannot be the content of `packed` bytes of a file.

    Also if they do not fit into memory.
    """
    if unpacked > max(_HARMLESS_BYTES, _SUSPICIOUS_RATIO * packed):
        raise ValueError(f"it declares {unpacked:,} bytes, but has only {packed:,} in the file")
    if unpacked > machine_memory():
        raise ValueError(f"it declares {unpacked:,} bytes, more than the memory of this machine")

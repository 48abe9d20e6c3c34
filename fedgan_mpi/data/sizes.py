"""Checks declared sizes before memory is reserved for them.

A file of a few kilobytes can declare an array of terabytes, or unpack to gigabytes.
"""

from __future__ import annotations

from fedgan_mpi.hardware.memory import memory_limit

_SUSPICIOUS_RATIO = 200
"""No compressed images are that much smaller than their pixels. Zeros shrink 1000-fold."""
_HARMLESS_BYTES = 2**28
"""Data of this size may be as compressible as it likes."""


def check_sizes(packed: int, unpacked: int) -> None:
    """Raise ValueError if `unpacked` bytes cannot be the content of `packed` bytes of a file.

    Also if they do not fit into memory.
    """
    if unpacked > max(_HARMLESS_BYTES, _SUSPICIOUS_RATIO * packed):
        raise ValueError(f"it declares {unpacked:,} bytes, but has only {packed:,} in the file")
    if unpacked > memory_limit():
        raise ValueError(f"it declares {unpacked:,} bytes, more than the memory of this machine")

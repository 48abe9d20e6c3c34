"""CPU features, affinity and quota of this process, read without importing torch.

The import of torch takes seconds; configuration errors must appear before it.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # Intel and AMD; ARM


def multiplies_bfloat16(cpuinfo: str = "/proc/cpuinfo") -> bool:
    """Return whether the CPU multiplies bfloat16 in hardware; False if that is unknown."""
    try:
        text = Path(cpuinfo).read_text()
    except OSError:
        return False
    flags = {
        flag
        for line in text.splitlines()
        if line.lower().startswith(("flags", "features"))
        for flag in line.partition(":")[2].split()
    }
    return bool(flags & _BFLOAT16_FLAGS)


def usable_cores() -> set[int]:
    """Return the numbers of the cores in this process's affinity mask."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def core_quota() -> int:
    """Return the cgroup CPU limit in cores, rounded up; 2**30 without a limit."""
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, -(-int(quota) // int(period)))  # int("max") raises ValueError: no limit
    with suppress(OSError, ValueError):
        v1 = Path("/sys/fs/cgroup/cpu")
        quota, period = ((v1 / f"cpu.cfs_{key}_us").read_text() for key in ("quota", "period"))
        if int(quota) > 0:
            return max(1, -(-int(quota) // int(period)))
    return 2**30

"""What this machine's CPU can do and how much of it is this process's, found without torch, whose
import takes longer than a mistake should take to be told."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}  # of Intel and AMD, and of ARM


def multiplies_bfloat16(cpuinfo: str = "/proc/cpuinfo") -> bool:
    """Whether it multiplies bfloat16 faster than float32; False where the system does not say."""
    try:
        text = Path(cpuinfo).read_text()
    except OSError:
        return False
    features = {
        feature
        for line in text.splitlines()
        if line.lower().startswith(("flags", "features"))
        for feature in line.partition(":")[2].split()
    }
    return bool(features & _BFLOAT16)


def usable_cores() -> set[int]:
    """Numbers of the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def core_quota() -> int:
    """Cores that a container's CPU limit amounts to, rounded up; many where there is no limit."""
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, -(-int(quota) // int(period)))  # "max" is no number
    with suppress(OSError, ValueError):
        v1 = Path("/sys/fs/cgroup/cpu")
        quota, period = ((v1 / f"cpu.cfs_{what}_us").read_text() for what in ("quota", "period"))
        if int(quota) > 0:
            return max(1, -(-int(quota) // int(period)))
    return 2**30

"""What this machine's CPU can do, found without torch, whose import takes longer than a mistake
should take to be told."""

from __future__ import annotations

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

"""The GPUs of this machine, counted without torch, whose import takes longer than a mistake should
take to be told."""

from __future__ import annotations

import ctypes


def cuda_devices() -> int:
    """GPUs that the NVIDIA driver offers to this process; 0 without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value

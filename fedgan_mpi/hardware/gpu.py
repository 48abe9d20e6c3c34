"""Number of GPUs, from the NVIDIA driver and without importing torch."""

from __future__ import annotations

import ctypes


def cuda_device_count() -> int:
    """Return the number of GPUs that the NVIDIA driver offers to this process."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value

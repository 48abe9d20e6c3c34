"""Number of GPUs, from the NVIDIA driver and without importing torch, and the identity of one."""

from __future__ import annotations

import ctypes
import platform
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


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


def gpu_identity(torch_device: torch.device) -> str:
    """Return a name of a GPU that is the same on all ranks, whatever number they know it by."""
    import torch

    uuid = getattr(torch.cuda.get_device_properties(torch_device), "uuid", torch_device.index)
    return f"{platform.node()} {uuid}"

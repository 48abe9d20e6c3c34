"""GPUs of this process, from their driver and without importing torch, and the identity of one."""

from __future__ import annotations

import ctypes
import importlib.util
import platform
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

Platform = Literal["cuda", "rocm"]
"""GPUs of NVIDIA, and of AMD. Torch calls both `cuda`."""
Load = Callable[[str], Any]


@dataclass(frozen=True)
class Gpus:
    """The GPUs that a driver offers to this process."""

    platform: Platform | None
    """None without a GPU."""
    count: int


def gpu_count() -> int:
    """Return the number of GPUs that a driver offers to this process."""
    return find_gpus().count


def find_gpus(load: Load = ctypes.CDLL) -> Gpus:
    """Ask NVIDIA's driver, then AMD's runtime. load: another one is for tests."""
    cuda = _load_first(load, ["libcuda.so.1"])
    if cuda is not None and cuda.cuInit(0) == 0 and (count := _ask(cuda.cuDeviceGetCount)):
        return Gpus("cuda", count)
    hip = _load_first(load, _hip_libraries())
    if hip is not None and (count := _ask(hip.hipGetDeviceCount)):
        return Gpus("rocm", count)
    return Gpus(None, 0)


def _ask(function: Any) -> int:
    """Call a function that writes the number of GPUs; 0 if it fails."""
    count = ctypes.c_int(0)
    return count.value if function(ctypes.byref(count)) == 0 else 0


def _hip_libraries() -> Iterator[str]:
    """Yield names of AMD's runtime. Torch's own comes first: a process should have only one."""
    torch = importlib.util.find_spec("torch")
    if torch is not None and torch.origin is not None:
        yield str(Path(torch.origin).parent / "lib" / "libamdhip64.so")
    yield from ("libamdhip64.so", "libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so.5")


def _load_first(load: Load, names: Iterable[str]) -> Any:
    for name in names:
        try:
            return load(name)
        except OSError:  # not installed
            continue
    return None


def gpu_identity(torch_device: torch.device) -> str:
    """Return a name of a GPU that is the same on all ranks, whatever number they know it by."""
    import torch

    uuid = getattr(torch.cuda.get_device_properties(torch_device), "uuid", torch_device.index)
    return f"{platform.node()} {uuid}"

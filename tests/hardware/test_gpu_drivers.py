"""GPUs are counted by the driver of NVIDIA or the runtime of AMD, here fake ones."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from fedgan_mpi.hardware.gpu import find_gpus


def writes(number: int, status: int = 0):
    def count(pointer: Any) -> int:
        pointer._obj.value = number
        return status

    return count


def cuda(number: int, *, init: int = 0, status: int = 0) -> Any:
    return SimpleNamespace(cuInit=lambda flags: init, cuDeviceGetCount=writes(number, status))


def hip(number: int, status: int = 0) -> Any:
    return SimpleNamespace(hipGetDeviceCount=writes(number, status))


@pytest.mark.parametrize(
    ("libraries", "expected"),
    [
        ({"libcuda.so.1": cuda(2)}, ("cuda", 2)),
        ({"libcuda.so.1": cuda(2), "libamdhip64.so": hip(4)}, ("cuda", 2)),
        # The driver is installed, but offers no GPU.
        ({"libcuda.so.1": cuda(0), "libamdhip64.so": hip(4)}, ("rocm", 4)),
        ({"libcuda.so.1": cuda(2, init=100), "libamdhip64.so": hip(4)}, ("rocm", 4)),
        ({"libcuda.so.1": cuda(2, status=1)}, (None, 0)),
        ({"libamdhip64.so.6": hip(1)}, ("rocm", 1)),
        ({"libamdhip64.so": hip(3, status=100)}, (None, 0)),
        ({}, (None, 0)),
    ],
)
def test_platform_and_number(libraries, expected):
    def load(name: str) -> Any:
        if name not in libraries:
            raise OSError("not found")
        return libraries[name]

    found = find_gpus(load)
    assert (found.platform, found.count) == expected


def test_the_runtime_inside_torch_comes_first():
    asked: list[str] = []

    def load(name: str) -> Any:
        asked.append(name)
        if name.endswith("/torch/lib/libamdhip64.so"):
            return hip(8)
        raise OSError("not found")

    assert find_gpus(load).count == 8
    assert len(asked) == 2  # a second runtime in one process would fail

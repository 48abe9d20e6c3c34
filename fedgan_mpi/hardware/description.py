"""The hardware of a rank, in words and numbers for the record of a run."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import torch

from fedgan_mpi.hardware.cpu import usable_cores
from fedgan_mpi.hardware.memory import memory_limit

MODULES = Path("/sys/module")
"""Directory of the kernel's modules, which include GPU drivers."""


def describe_hardware(torch_device: torch.device) -> dict[str, str | int]:
    """Return host, torch device, GPU, cores of this process's affinity, torch's threads and the
    bytes of memory that all processes of the job may use on this machine.

    Keys of the GPU are absent on a CPU.
    """
    return {
        "host": platform.node(),
        "device": str(torch_device),
        **(_describe_gpu(torch_device) if torch_device.type == "cuda" else {}),
        "cores": format_ranges(usable_cores()),
        "threads": torch.get_num_threads(),
        "bytes_memory": memory_limit(),
    }


def _describe_gpu(torch_device: torch.device) -> dict[str, str]:
    gpu = {"gpu": torch.cuda.get_device_name(torch_device)}
    for module in ("nvidia", "amdgpu"):
        with suppress(OSError):
            gpu["driver"] = f"{module} {(MODULES / module / 'version').read_text().strip()}"
    version = torch.version.cuda
    return gpu | {"cuda": f"ROCm {torch.version.hip}" if version is None else version}


def format_ranges(numbers: Iterable[int]) -> str:
    """Return numbers as the kernel lists cores: "0-2,5"."""
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1][1:] = [number]
        else:
            ranges.append([number])
    return ",".join("-".join(map(str, each)) for each in ranges)

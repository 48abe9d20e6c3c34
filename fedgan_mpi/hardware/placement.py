"""Placement of a rank's computation: its GPU, or its number of CPU threads."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

import torch

from fedgan_mpi.config import Config
from fedgan_mpi.hardware.gpu import find_gpus
from fedgan_mpi.hardware.ranges import use_nvtx
from fedgan_mpi.hardware.tf32 import use_tf32

T = TypeVar("T")


class Ranks(Protocol):
    """All ranks of a job, as one of them sees them."""

    rank: int

    def agree(self, problem: str | None) -> None:
        """Collective. Raise an error on every rank if any rank has a problem."""

    def allgather(self, value: T) -> list[T]:
        """Collective. Return every rank's value."""


def choose_torch_device(config: Config, ranks: Ranks) -> str:
    """Collective. Return "cpu" or this rank's GPU, and make that GPU the current device.

    Ranks that see the same GPUs take them in turn. A scheduler may show a rank only some of them.

    Problems: a GPU or CUDA graphs are requested but torch cannot use a GPU, another process has the
    GPU for itself, or it lacks bfloat16.
    """
    device = config.training.device
    if config.link.route in ("cuda", "nccl") and device == "auto":
        device = "cuda"
    has_gpu = torch.cuda.is_available()
    ranks.agree(None if has_gpu else _gpu_problem(device, config.training.graphs))
    torch_device, problem = "cpu", None
    visible = _visible_gpus() if has_gpu else None
    number = ranks.allgather(visible)[: ranks.rank].count(visible)
    if device != "cpu" and has_gpu:
        torch_device = f"cuda:{number % torch.cuda.device_count()}"
        problem = _exclusive_problem(torch_device)
        use_tf32(config.training.tf32)
        use_nvtx()
    ranks.agree(problem or _autocast_problem(config, torch_device))
    return torch_device


def _visible_gpus() -> tuple[str, ...]:
    """Return the identifiers of the GPUs that this process sees, unique among all machines."""
    properties = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    # Before version 2.4, torch has no identifiers.
    return tuple(str(getattr(each, "uuid", platform.node())) for each in properties)


def _exclusive_problem(torch_device: str) -> str | None:
    """Make a GPU the current device and use it once. Return why that fails."""
    try:
        torch.cuda.set_device(torch_device)
        torch.zeros(1, device=torch_device)
    except RuntimeError as error:
        reason = str(error).splitlines()[0].rstrip(".")
        return (
            f"a rank cannot use {torch_device} of {platform.node()}: {reason}; if its compute mode "
            "is exclusive, ranks can share it only under NVIDIA's MPS"
        )
    return None


def _gpu_problem(device: str, graphs: str) -> str | None:
    """Return what is asked for and needs a GPU, although torch can use none."""
    reason = why_torch_has_no_gpu() or "this machine has no GPU"
    if device == "cuda":
        return f"training.device is 'cuda', but {reason}; use 'cpu'"
    if graphs == "on":
        return f"training.graphs is 'on', but {reason}; use 'off'"
    return None


def why_torch_has_no_gpu() -> str | None:
    """Return why torch cannot use this machine's GPU; None if it can, or if there is none."""
    platform = find_gpus().platform
    if platform is None or torch.cuda.is_available():
        return None
    name, version = {"cuda": ("CUDA", torch.version.cuda), "rocm": ("ROCm", torch.version.hip)}[
        platform
    ]
    if version is None:
        return (
            f"torch {torch.__version__} is built without {name} and cannot use this machine's GPU"
        )
    try:
        torch.cuda.init()
    except Exception as error:  # torch names the driver's version
        problem = " ".join(str(error).split())
        return f"torch {torch.__version__} cannot use this machine's GPU: {problem}"
    return f"torch {torch.__version__} does not see this machine's GPU"


def set_threads(config: Config, *, cores: int, ranks: int) -> None:
    """Set torch's OpenMP threads to cores / ranks of this machine, at least 1.

    Keeps OMP_NUM_THREADS if set. Uses 1 thread if results must not depend on the number of ranks:
    sums over several threads round differently. More threads than cores would wait for each other
    in every step.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return
    in_order = config.link.average == "gather" or config.aggregation.needs_rows
    torch.set_num_threads(1 if in_order else max(1, cores // ranks))


@contextmanager
def single_thread() -> Iterator[None]:
    """Run torch on one thread, so that sums do not depend on the number of cores or ranks."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _autocast_problem(config: Config, torch_device: str) -> str | None:
    if config.training.autocast == "off" or torch_device == "cpu":
        return None
    if torch.cuda.get_device_capability() >= (8, 0):
        return None
    name = torch.cuda.get_device_name()
    return f"training.autocast is 'bfloat16', but an {name} has no bfloat16; use 'off'"

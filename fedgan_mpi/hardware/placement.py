"""Placement of a rank's computation: its GPU, or its number of CPU threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from fedgan_mpi.config import Config
from fedgan_mpi.hardware.gpu import find_gpus
from fedgan_mpi.hardware.tf32 import use_tf32


def choose_torch_device(
    config: Config, local_rank: int, agree: Callable[[str | None], None]
) -> str:
    """Collective. Return "cpu" or this rank's GPU, and make that GPU the current device.

    local_rank: This rank's number on its machine.
    agree: Raises an error on every rank if any rank passes a problem.

    Problems: a GPU or CUDA graphs are requested but torch cannot use a GPU, or it lacks bfloat16.
    """
    device = config.training.device
    if config.link.route == "cuda" and device == "auto":
        device = "cuda"
    has_gpu = torch.cuda.is_available()
    agree(None if has_gpu else _gpu_problem(device, config.training.graphs))
    torch_device = "cpu"
    if device != "cpu" and has_gpu:
        torch_device = f"cuda:{local_rank % torch.cuda.device_count()}"
        torch.cuda.set_device(torch_device)
        use_tf32(config.training.tf32)
    agree(_autocast_problem(config, torch_device))
    return torch_device


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

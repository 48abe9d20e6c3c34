"""Placement of a rank's computation: its GPU, or its number of CPU threads."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

from fedgan_mpi.config import Config
from fedgan_mpi.hardware.tf32 import use_tf32


def choose_torch_device(
    config: Config, local_rank: int, agree: Callable[[str | None], None]
) -> str:
    """Collective. Return "cpu" or this rank's GPU, and make that GPU the current device.

    local_rank: This rank's number on its machine.
    agree: Raises an error on every rank if any rank passes a problem.

    Problems: a GPU is requested but torch sees none, or it lacks bfloat16.
    """
    device = config.training.device
    if config.link.route == "cuda" and device == "auto":
        device = "cuda"
    has_gpu = torch.cuda.is_available()
    missing = "this build of torch sees no GPU; install one with CUDA, or use 'cpu'"
    agree(missing if device == "cuda" and not has_gpu else None)
    torch_device = "cpu"
    if device != "cpu" and has_gpu:
        torch_device = f"cuda:{local_rank % torch.cuda.device_count()}"
        torch.cuda.set_device(torch_device)
        use_tf32(config.training.tf32)
    agree(_autocast_problem(config, torch_device))
    return torch_device


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


def _autocast_problem(config: Config, torch_device: str) -> str | None:
    if config.training.autocast == "off" or torch_device == "cpu":
        return None
    if torch.cuda.get_device_capability() >= (8, 0):
        return None
    name = torch.cuda.get_device_name()
    return f"training.autocast is 'bfloat16', but an {name} has no bfloat16; use 'off'"

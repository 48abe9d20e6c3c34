"""Where a rank computes: which GPU, or how many threads of the CPU."""

from __future__ import annotations

import os

import torch

from fedgan_mpi.comm.link import Link
from fedgan_mpi.config import Config
from fedgan_mpi.nn.precision import use_tf32


def choose_torch_device(config: Config, link: Link) -> str:
    """Collective. The GPU of this rank's place on its machine, or the CPU; the link then knows how
    its vectors go.

    Raises AgreedError where torch sees no GPU though one was asked for, or MPI cannot read its.
    """
    wanted = config.training.device
    if config.link.route == "cuda" and wanted == "auto":
        wanted = "cuda"
    blind = wanted == "cuda" and not torch.cuda.is_available()
    link.agree(
        "this build of torch sees no GPU; install one with CUDA, or use 'cpu'" if blind else None
    )
    torch_device = "cpu"
    if wanted != "cpu" and torch.cuda.is_available():
        torch_device = f"cuda:{link.rank_here % torch.cuda.device_count()}"
        torch.cuda.set_device(torch_device)
        use_tf32(config.training.tf32)
    link.agree(_autocast_problem(config, torch_device))
    link.choose_route(torch_device)
    return torch_device


def _autocast_problem(config: Config, torch_device: str) -> str | None:
    if config.training.autocast == "off" or torch_device == "cpu":
        return None
    if torch.cuda.get_device_capability() >= (8, 0):
        return None
    name = torch.cuda.get_device_name()
    return f"training.autocast is 'bfloat16', but an {name} has no bfloat16; use 'off'"


def set_threads(config: Config, link: Link) -> None:
    """One OpenMP thread a rank unless cores allow more; OMP_NUM_THREADS, where set, is obeyed.

    One, too, where results must not depend on the number of ranks: sums over threads round
    differently. Threads on cores that other ranks use would wait for each other many times a step.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return
    shared = max(1, link.cores_here // link.ranks_here)
    torch.set_num_threads(1 if config.link.average == "gather" else shared)

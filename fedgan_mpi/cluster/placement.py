"""Where a rank computes: which GPU, or how many threads of the CPU."""

from __future__ import annotations

import os

import torch

from fedgan_mpi.cluster.link import Link
from fedgan_mpi.config import Config


def choose_torch_device(config: Config, link: Link) -> str:
    """The GPU of this rank's place on its machine, or the CPU."""
    wanted = config.training.device
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return "cpu"
    torch_device = f"cuda:{link.rank_here % torch.cuda.device_count()}"
    torch.cuda.set_device(torch_device)
    return torch_device


def set_threads(config: Config, link: Link) -> None:
    """One OpenMP thread a rank unless cores allow more; OMP_NUM_THREADS, where the user set it, is
    obeyed.

    In the serial schedule the devices sleep while the server computes, so it takes all cores. Where
    results must not depend on the number of ranks, device ranks keep to one thread: sums over
    threads round differently.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return
    serial = config.algorithm.name == "centralized" or config.algorithm.schedule == "serial"
    if link.is_server and serial:
        threads = link.cores_here
    elif config.link.average == "gather":
        threads = 1
    else:
        threads = max(1, link.cores_here // link.ranks_here)
    torch.set_num_threads(threads)

"""Which shards stay in the memory of GPUs. All ranks and devices of a GPU share one budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from fedgan_mpi.comm.link import Link
from fedgan_mpi.data import Shard
from fedgan_mpi.hardware.description import format_ranges
from fedgan_mpi.hardware.gpu import gpu_identity

MEMORY_SHARE = 0.25
"""Of a GPU's free memory, which shards may take together."""


class GpuShards(NamedTuple):
    """The shards of one rank with a GPU."""

    gpu: str
    """Identity of the GPU, the same on all its ranks."""
    free: int
    """Bytes of free memory."""
    nbytes: dict[int, int | None]
    """Device -> bytes of its images; None if they are on disk."""


def choose_resident(
    link: Link, torch_device: torch.device, shards: Mapping[int, Shard]
) -> tuple[set[int], list[str]]:
    """Collective. Return the devices whose shards stay in GPU memory, and sentences for the log.

    The result is the same on every rank.
    """
    own = None
    if torch_device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(torch_device)
        images = {device: shard.images for device, shard in shards.items()}
        nbytes = {k: x.nbytes if isinstance(x, np.ndarray) else None for k, x in images.items()}
        own = GpuShards(gpu_identity(torch_device), free, nbytes)
    ranks = [rank for rank in link.allgather(own) if rank is not None]
    resident = fit(ranks)
    return resident, describe(ranks, resident)


def fit(ranks: Sequence[GpuShards]) -> set[int]:
    """Return the devices whose shards fit, in the order of devices, into the budgets of GPUs.

    A GPU's budget follows from the least free memory that any of its ranks has seen.
    """
    budgets: dict[str, float] = {}
    for rank in ranks:
        budget = MEMORY_SHARE * rank.free
        budgets[rank.gpu] = min(budget, budgets.get(rank.gpu, budget))
    resident = set()
    sizes = [(device, size, rank.gpu) for rank in ranks for device, size in rank.nbytes.items()]
    for device, size, gpu in sorted(sizes, key=lambda each: each[0]):
        if size is not None and size <= budgets[gpu]:
            budgets[gpu] -= size
            resident.add(device)
    return resident


def describe(ranks: Sequence[GpuShards], resident: set[int]) -> list[str]:
    """Return sentences about the place of each device's images; none without GPUs."""
    sizes = {device: size for rank in ranks for device, size in rank.nbytes.items()}
    on_disk = {device for device, size in sizes.items() if size is None}
    share = f"shards may take {MEMORY_SHARE:.0%} of a GPU's free memory"
    places = (
        (resident, "GPU memory holds the images of {}."),
        (sizes.keys() - resident - on_disk, f"Host memory holds the images of {{}}: {share}."),
        (on_disk, "Images of {} are read from disk batch by batch (data.read)."),
    )
    return [
        sentence.format(f"device{'s' * (len(devices) > 1)} {format_ranges(devices)}")
        for devices, sentence in places
        if devices
    ]

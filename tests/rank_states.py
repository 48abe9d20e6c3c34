"""The tensors of a rank's part of a checkpoint, to compare before and after."""

from __future__ import annotations

import torch

from fedgan_mpi.checkpoint.format import local_files
from fedgan_mpi.checkpoint.packing import PackedState, unpack
from fedgan_mpi.federation.rank import RankState


def states(rank_state: RankState) -> dict[str, torch.Tensor]:
    """Return copies of all tensors that this rank's part of a checkpoint must hold."""
    return {
        f"{name} {leaf}": tensor
        for name, owner in local_files(rank_state).items()
        for leaf, tensor in unpack(PackedState(owner.state()).content).items()
    }


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)

"""Feedback of devices on fakes, for algorithms whose discriminators never leave the devices."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Size, Tensor

from fedgan_mpi.federation.flat_parameters import is_finite
from fedgan_mpi.federation.rank import RankState


class Feedback:
    """One tensor for each device that this rank hosts; on the server for all devices."""

    def __init__(self, rank_state: RankState, shape: Sequence[int]) -> None:
        """shape: of one device's feedback."""
        all_devices = range(1, rank_state.participation.devices + 1)
        hosted = [device.index for device in rank_state.devices]
        like = rank_state.pair.flat.vector
        self._of = {
            k: torch.zeros(Size(shape), dtype=like.dtype, device=like.device)
            for k in (all_devices if rank_state.link.is_server else hosted)
        }

    def __getitem__(self, device: int) -> Tensor:
        return self._of[device]

    def refuse(self, device: int) -> None:
        """Mark a device as absent: NaN travels in place of its feedback."""
        self._of[device].fill_(math.nan)

    def valid(self, present: Sequence[int]) -> list[int]:
        """Return the participants whose feedback is finite."""
        return [k for k in present if is_finite(self._of[k])]

    def vectors(self, present: Sequence[int]) -> dict[int, Tensor]:
        """Return device -> feedback as a 1-D vector, for the participants held here."""
        return {k: tensor.view(-1) for k, tensor in self._of.items() if k in present}

"""What devices say of fakes, for algorithms whose D's never leave them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Size, Tensor

from fedgan_mpi.federation.flat_parameters import is_finite
from fedgan_mpi.federation.rank import RankState


class Feedback:
    """A tensor for each device that this rank hosts, on the server for all of them."""

    def __init__(self, rank_state: RankState, shape: Sequence[int]) -> None:
        """shape: of one answer."""
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
        """Have the device say that it counts as absent."""
        self._of[device].fill_(math.nan)

    def given(self, present: Sequence[int]) -> list[int]:
        """Those of the participants that did not refuse, and whose numbers are finite."""
        return [k for k in present if is_finite(self._of[k])]

    def rows(self, present: Sequence[int]) -> dict[int, Tensor]:
        """Device -> 1-D vector, of the participants among them, as they travel."""
        return {k: answer.view(-1) for k, answer in self._of.items() if k in present}

"""Updates of participants who are drawn by how far they go: policy `importance`."""

from __future__ import annotations

import math

from torch import Tensor

from fedgan_mpi.federation.rank import RankState


class ImportanceWeights:
    """What a device's training changed of some parameters in the rank's vector. Where another
    policy chooses participants, it does nothing."""

    def __init__(self, rank_state: RankState, *parameters: Tensor) -> None:
        self._participation = rank_state.participation
        self._on = rank_state.config.participation.policy == "importance"
        self._parameters = [each.detach() for each in parameters]
        self._received = [each.clone() for each in self._parameters] if self._on else []

    def begin(self) -> None:
        """Remember what came down."""
        for received, parameter in zip(self._received, self._parameters, strict=self._on):
            received.copy_(parameter)

    def apply(self, device: int, t: int) -> dict[int, float]:
        """Multiply what has just been changed, so that the average over draws is that of all
        devices. Gives {device: norm before that}; nothing where another policy chooses.

        BatchNorm statistics and moments stay as they are: lengthened, a variance may be negative.
        """
        if not self._on:
            return {}
        factor = self._participation.inverse_probability(t)[device]
        squares = 0.0
        for received, parameter in zip(self._received, self._parameters, strict=True):
            parameter.sub_(received)
            squares += float(parameter.norm()) ** 2
            parameter.mul_(factor).add_(received)
        return {device: math.sqrt(squares)}

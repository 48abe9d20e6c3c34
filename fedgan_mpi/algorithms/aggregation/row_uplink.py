"""The uplink of rules that need every participant's own vector."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fedgan_mpi.algorithms.aggregation.rules import Rule
from fedgan_mpi.algorithms.aggregation.transforms import UpdateTransform, Upload
from fedgan_mpi.algorithms.aggregation.uplink import Uplink
from fedgan_mpi.algorithms.local_metrics import LocalMetrics
from fedgan_mpi.federation.device import Device
from fedgan_mpi.federation.flat_parameters import is_finite
from fedgan_mpi.federation.rank import RankState


class RowUplink(Uplink):
    """Sends one vector per participant; the server combines them by a rule.

    The result does not depend on the number of ranks.
    """

    def __init__(
        self,
        rank_state: RankState,
        vector: Tensor,
        transforms: Sequence[UpdateTransform],
        rule: Rule | None,
    ) -> None:
        """rule: None for the weighted mean."""
        super().__init__(rank_state, vector, transforms)
        self._participation, self._rule = rank_state.participation, rule
        self._hosted = [device.index for device in rank_state.devices]
        self._table: Tensor | None = None
        everyone = range(1, rank_state.participation.devices + 1)
        self._rows = self.make_rows(everyone if self.link.is_server else self._hosted)

    def make_sums(self, count: int) -> Tensor:
        return self.vector[:0]

    def make_rows(self, devices: Sequence[int]) -> dict[int, Tensor]:
        """Return memory for what each of these devices sends, 1-D."""
        self._table = self.vector.new_zeros(len(devices), len(self.vector))
        return dict(zip(devices, self._table, strict=True))

    def begin(self, t: int) -> None:
        if self._round != t:
            for device in self._participation.participants(t):
                if device in self._hosted:  # until `add`, it counts as absent
                    self.refuse(device)
        super().begin(t)

    def refuse(self, device: int) -> None:
        """Mark a device as absent: NaN travels in place of its numbers."""
        self._rows[device].fill_(math.nan)

    def add(self, device: Device, share: float, metrics: LocalMetrics) -> None:
        """Transform a participant's upload and keep it."""
        assert self._round is not None
        self._transform(Upload(device, self._round, share, self.vector, self._received, metrics))
        row = self._rows[device.index]
        row.copy_(self.vector)
        if device.residual is not None:
            self.link.wire.round_with_feedback(row, device.residual)

    def is_valid(self, device: int) -> bool:
        """Whether the numbers that a participant has sent are finite."""
        return is_finite(self._rows[device])

    def read(self, device: int, before: Tensor) -> Tensor:
        """Return the vector that a participant has sent. before: the server's vector; read-only."""
        return self._rows[device]

    def send(self, into: Tensor) -> None:
        assert self._round is not None
        self._prepare_server()
        present = self._participation.participants(self._round)
        self.link.gather({k: row for k, row in self._rows.items() if k in present})

    def finish(self, into: Tensor) -> None:
        """Combine the vectors of the participants whose numbers are finite; with too few of them,
        the server's vector stays as it is."""
        assert self._round is not None
        shares = self._participation.shares(self._round)
        valid = [k for k in shares if self.is_valid(k)]
        if len(valid) >= (1 if self._rule is None else self._rule.least_participants):
            weights = torch.tensor([shares[k] for k in valid], dtype=into.dtype, device=into.device)
            into.copy_(self._combine(valid, weights / weights.sum(), into))
        self._change_on_server()

    def _combine(self, devices: Sequence[int], weights: Tensor, before: Tensor) -> Tensor:
        if self._rule is None:
            total = torch.zeros_like(before)
            for device, weight in zip(devices, weights, strict=True):
                total.add_(self.read(device, before) * weight)
            return total
        vectors = self._stack(devices, before)
        if self._rule.takes_updates:
            return before + self._rule.combine(vectors.sub_(before), weights)
        return self._rule.combine(vectors, weights)

    def _stack(self, devices: Sequence[int], before: Tensor) -> Tensor:
        if self._table is not None and len(devices) == len(self._table):
            return self._table  # no copy if every device takes part
        return torch.stack([self.read(device, before) for device in devices])

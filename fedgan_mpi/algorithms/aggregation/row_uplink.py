"""The uplink of aggregation rules that need every participant's own vector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fedgan_mpi.algorithms.aggregation.attack import Attack
from fedgan_mpi.algorithms.aggregation.rules import Rule, make_rule
from fedgan_mpi.algorithms.aggregation.server_optimizer import ServerStep, make_server_optimizer
from fedgan_mpi.algorithms.aggregation.transforms import UpdateTransform, Upload
from fedgan_mpi.algorithms.aggregation.uplink import Uplink
from fedgan_mpi.algorithms.local_metrics import LocalMetrics
from fedgan_mpi.federation.device import Device
from fedgan_mpi.federation.feedback import Feedback
from fedgan_mpi.federation.rank import RankState


def make_uplink(
    rank_state: RankState,
    vector: Tensor,
    transforms: Sequence[UpdateTransform] = (),
    last: Sequence[UpdateTransform] = (),
    **options: Any,
) -> Uplink:
    """Return the uplink with the configured attack, rule and server optimizer. Collective.

    The order: attack, `transforms`, rule, their part on the server, server optimizer, `last`. The
    other arguments are those of `Uplink`.
    """
    config = rank_state.config
    parameters = _parameters_in(rank_state, vector)
    if config.attack.devices:
        transforms = [Attack(config.attack, config.run.seed, parameters), *transforms]
    optimizer = make_server_optimizer(config.aggregation)
    if optimizer is not None:
        transforms = [*transforms, ServerStep(optimizer, parameters, rank_state.server)]
    transforms = [*transforms, *last]
    rule = make_rule(config.aggregation)
    if rule is None:
        return Uplink(rank_state, vector, transforms, **options)
    return RowUplink(rank_state, vector, transforms, rule)


def _parameters_in(rank_state: RankState, vector: Tensor) -> list[Tensor]:
    """Return θ, φ or both: those that the vector contains."""
    start, flat = vector.storage_offset(), rank_state.pair.flat
    stop = start + vector.numel()
    return [
        each
        for each in (flat.theta.detach(), flat.phi.detach())
        if start <= each.storage_offset() and each.storage_offset() + each.numel() <= stop
    ]


class RowUplink(Uplink):
    """Sends one vector per participant; the server combines them by a rule.

    The result does not depend on the number of ranks.
    """

    def __init__(
        self,
        rank_state: RankState,
        vector: Tensor,
        transforms: Sequence[UpdateTransform],
        rule: Rule,
    ) -> None:
        super().__init__(rank_state, vector, transforms)
        self._participation, self._rule = rank_state.participation, rule
        self._vectors = Feedback(rank_state, vector.shape)
        self._hosted = [device.index for device in rank_state.devices]

    def begin(self, t: int) -> None:
        if self._round != t:
            for device in self._hosted:  # until `add`, a participant counts as absent
                self._vectors.refuse(device)
        super().begin(t)

    def add(self, device: Device, share: float, metrics: LocalMetrics) -> None:
        """Transform a participant's upload and keep it."""
        assert self._round is not None
        upload = Upload(device, self._round, share, self.vector, self._received, metrics)
        for transform in self.transforms:
            transform.on_device(upload)
        row = self._vectors[device.index]
        row.copy_(self.vector)
        if device.residual is not None:
            self.link.wire.round_with_feedback(row, device.residual)

    def send(self, into: Tensor) -> None:
        assert self._round is not None
        self._prepare_server()
        self.link.gather(self._vectors.vectors(self._participation.participants(self._round)))

    def finish(self, into: Tensor) -> None:
        """Combine the vectors of the participants whose numbers are finite; with too few of them,
        the server's vector stays as it is."""
        assert self._round is not None
        shares = self._participation.shares(self._round)
        valid = self._vectors.valid(list(shares))
        if len(valid) >= self._rule.least_participants:
            weights = torch.tensor([shares[k] for k in valid], dtype=into.dtype, device=into.device)
            vectors = torch.stack([self._vectors[k] for k in valid])
            weights /= weights.sum()
            if self._rule.takes_updates:
                into.add_(self._rule.combine(vectors.sub_(into), weights))
            else:
                into.copy_(self._rule.combine(vectors, weights))
        self._change_on_server()

"""Simulated attacks: what devices of `attack.devices` send in place of their honest upload."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedgan_mpi.algorithms.aggregation.transforms import UpdateTransform, Upload
from fedgan_mpi.config import AttackConfig
from fedgan_mpi.random_streams import Purpose, torch_stream


class Attack(UpdateTransform):
    """Replaces the updates of some devices. BatchNorm statistics and moments stay honest.

    Free riders: Zhao et al. 2022 (arXiv:2201.09967).
    """

    needs_received = True

    def __init__(self, config: AttackConfig, seed: int, parameters: Sequence[Tensor]) -> None:
        """parameters: the parts of the uploaded vector that are updates, 1-D views of it."""
        self._config, self._seed = config, seed
        self._parameters = [each.detach() for each in parameters]

    def on_device(self, upload: Upload) -> None:
        config, device = self._config, upload.device.index
        if device not in config.devices or upload.round + 1 < config.from_round:
            return
        stream = torch_stream(self._seed, Purpose.ATTACK, upload.round, device)
        for parameter in self._parameters:
            received = upload.received_part(parameter)
            base = torch.zeros_like(received) if upload.is_update else received
            update = parameter - base
            parameter.copy_(base + self._dishonest(update, received, stream))

    def _dishonest(self, update: Tensor, received: Tensor, stream: torch.Generator) -> Tensor:
        """Return the update that is sent, given the honest one and the received parameters."""
        kind, strength = self._config.kind, self._config.strength
        if kind == "sign_flip":
            return -strength * update
        if kind == "stale":
            return torch.zeros_like(update)
        noise = torch.randn(update.shape, generator=stream, dtype=update.dtype).to(update.device)
        if kind == "noise":
            return update + strength * noise
        # label_free: parameters of a network that has seen no data.
        return strength * received.square().mean().sqrt() * noise - received

"""Differential privacy of averaged updates: clipping on devices, Gaussian noise on the server."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedgan_mpi.algorithms.aggregation.transforms import UpdateTransform, Upload
from fedgan_mpi.random_streams import Purpose, torch_stream


class Clip(UpdateTransform):
    """Scales the update of some parameters to at most a norm (Augenstein et al. 2020)."""

    def __init__(self, parameters: Tensor, norm: float, rounding_error: float) -> None:
        """norm: C; 0 clips nothing. rounding_error: the wire's largest relative error; the limit is
        lower by this margin."""
        self._parameters = parameters.detach()
        self._limit = (norm or math.inf) / (1 + rounding_error)

    def on_device(self, upload: Upload) -> None:
        norm = float(self._parameters.norm())
        if norm > self._limit:
            self._parameters.mul_(self._limit / norm)


class GaussianNoise(UpdateTransform):
    """Adds N(0, σ²) to some parameters of the server."""

    def __init__(self, parameters: Tensor, deviation: float, seed: int) -> None:
        self._parameters = parameters.detach()
        self._deviation, self._seed = deviation, seed

    def on_server(self, t: int) -> None:
        stream = torch_stream(self._seed, Purpose.PRIVACY, t)
        phi = self._parameters
        noise = torch.randn(phi.shape, generator=stream, dtype=phi.dtype).to(phi.device)
        phi.add_(noise, alpha=self._deviation)

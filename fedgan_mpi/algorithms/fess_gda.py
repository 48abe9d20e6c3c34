"""FedGAN with a smoothed server step (FESS-GDA: Shen, Huang, Zhang, Shen 2024, arXiv:2311.00944).

The minimum is over x = θ, the maximum over y = φ. Without smoothing (p = 0) and with SGD it is
Local SGDA (Sharma et al. 2022).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedgan_mpi.algorithms.aggregation.build import make_uplink
from fedgan_mpi.algorithms.aggregation.transforms import UpdateTransform
from fedgan_mpi.algorithms.aggregation.uplink import Uplink
from fedgan_mpi.algorithms.fedgan import FedGAN
from fedgan_mpi.config import TrainingConfig
from fedgan_mpi.config.algorithm_traits import TRAITS
from fedgan_mpi.nn.schedules import rate_factor


class FessGDA(FedGAN):
    """x ← x + η_g (Σ w_k x_k - x) - η_l η_g K p (x - z), then z ← z + β (x - z).

    y has no smoothing. η_g is the rate of `aggregation.server_optimizer`, η_l the learning rate of
    G, and K the number of local steps.
    """

    traits = TRAITS["fess_gda"]

    def make_uplink(self) -> Uplink:
        transforms, last = self.make_transforms(), [self.make_ema()]
        if self.config.smoothing == 0:
            return make_uplink(self.rank_state, self.flat.gan, transforms, last)
        theta = self.flat.theta.detach()
        z = theta.clone()  # z_0 = x_0
        if self.server:
            self.server.kept["z"] = z
        pull = Pull(theta, z, self.training, self.config.smoothing)
        return make_uplink(
            self.rank_state,
            self.flat.gan,
            [*transforms, pull],
            [MoveCentre(theta, z, self.config.smoothing_rate), *last],
        )


class Pull(UpdateTransform):
    """Adds -η_l K p (x - z) to the average update, before the server optimizer."""

    def __init__(self, x: Tensor, z: Tensor, training: TrainingConfig, p: float) -> None:
        """x: the server's parameters."""
        self._x, self._z, self._training, self._p = x, z, training, p
        self._before = torch.empty_like(x)

    def before_average(self, t: int) -> None:
        self._before.copy_(self._x)

    def on_server(self, t: int) -> None:
        rate = self._training.rate_of_G * rate_factor(self._training, t)
        strength = rate * self._training.discriminator_steps * self._p
        self._x.sub_(self._before - self._z, alpha=strength)


class MoveCentre(UpdateTransform):
    """z ← z + β (x - z), with the x of the next round."""

    def __init__(self, x: Tensor, z: Tensor, beta: float) -> None:
        self._x, self._z, self._beta = x, z, beta

    def on_server(self, t: int) -> None:
        self._z.lerp_(self._x, self._beta)

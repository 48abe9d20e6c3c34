"""FedGAN with shares that depend on the devices' data (FeGAN: Guerraoui, Guirguis, Kermarrec, Le
Merrer 2020) or on their progress (preset `ifl`: Li et al. 2022).

FeGAN's class-balanced rounds are the participation policy `balanced`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedgan_mpi.algorithms.aggregation.build import make_uplink
from fedgan_mpi.algorithms.aggregation.discrepancy import DiscrepancyShare
from fedgan_mpi.algorithms.aggregation.transforms import UpdateTransform
from fedgan_mpi.algorithms.aggregation.uplink import Uplink
from fedgan_mpi.algorithms.fedgan import FedGAN
from fedgan_mpi.config.algorithm_traits import TRAITS
from fedgan_mpi.federation.rank import RankState


class FeGAN(FedGAN):
    """FedGAN's rounds with other shares."""

    traits = TRAITS["fegan"]

    def __init__(self, rank_state: RankState) -> None:
        super().__init__(rank_state)
        if self.config.preset != "ifl":
            participation = rank_state.participation
            participation.sizes = kl_weights(participation.histograms, self.config.kl_sign)

    def make_uplink(self) -> Uplink:
        # exp(MMD) is a softmax without its denominator.
        normalizes = True if self.config.preset == "ifl" else None
        transforms = self.make_transforms()
        last = [self.make_ema()]
        return make_uplink(self.rank_state, self.flat.gan, transforms, last, normalizes=normalizes)

    def make_transforms(self) -> list[UpdateTransform]:
        shares = [DiscrepancyShare(self.rank_state.pair)] if self.config.preset == "ifl" else []
        return [*shares, *super().make_transforms()]


def kl_weights(histograms: Sequence[Sequence[int]], sign: int) -> list[float]:
    """Return the weight exp(sign · KL(p_k ‖ p) · n_k / n) of each device.

    Shares are proportional to weights. The device has n_k images and the class distribution p_k;
    all devices have n and p. Source: FeGAN's released code, with sign +1.
    """
    counts = np.array(histograms, np.float64)
    images = counts.sum(1, keepdims=True)
    local, whole = counts / images, counts.sum(0) / counts.sum()
    ratio = np.divide(local, whole, out=np.ones_like(local), where=local > 0)
    divergence = (local * np.log(ratio)).sum(1)
    weights: list[float] = np.exp(sign * divergence * images[:, 0] / counts.sum()).tolist()
    return weights

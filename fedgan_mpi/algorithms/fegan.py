"""FedGAN with shares that look at what devices hold (FeGAN: Guerraoui, Guirguis, Kermarrec, Le
Merrer 2020) or at what they have learned (preset `ifl`: Li et al. 2022).

FeGAN's other half, rounds in which all classes are seen equally often, is the policy `balanced`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedgan_mpi.algorithms.fedgan import FedGAN
from fedgan_mpi.federation.device import Device
from fedgan_mpi.federation.rank import RankState


class FeGAN(FedGAN):
    """FedGAN's rounds; only the shares differ."""

    def __init__(self, rank_state: RankState) -> None:
        super().__init__(rank_state)
        self.by_distance = self.config.preset == "ifl"
        self.uplink.normalizes |= self.by_distance
        participation = rank_state.participation
        if not self.by_distance:
            participation.sizes = kl_weights(participation.histograms, self.config.kl_sign)

    def weigh(self, device: Device, share: float) -> float:
        """exp(MMD) of the device's images and its generator's: softmax's numerator, whose
        denominator only all devices know. Otherwise the share by label histogram."""
        if not self.by_distance:
            return share
        pair = self.rank_state.pair
        real, z = device.real_batch(), device.noise()
        pair.G.eval()
        fake = pair.fakes(z)
        pair.G.train()
        return math.exp(mean_discrepancy(real.data.flatten(1), fake.data.flatten(1)))


def kl_weights(histograms: Sequence[Sequence[int]], sign: int) -> list[float]:
    """exp(sign · KL(p_k ‖ p) · n_k / n) of each device; shares are proportional to it.

    p_k: the device's classes; p: those of all devices together; n_k, n: images. Source: FeGAN's
    released code, where the sign is +1.
    """
    counts = np.array(histograms, np.float64)
    images = counts.sum(1, keepdims=True)
    local, whole = counts / images, counts.sum(0) / counts.sum()
    ratio = np.divide(local, whole, out=np.ones_like(local), where=local > 0)
    divergence = (local * np.log(ratio)).sum(1)
    weights: list[float] = np.exp(sign * divergence * images[:, 0] / counts.sum()).tolist()
    return weights


def mean_discrepancy(one: Tensor, other: Tensor) -> float:
    """MMD between two samples (n, d) and (m, d): Gaussian kernel, its width the median distance of
    all points (Gretton et al. 2012, arXiv:0805.2368, equation 5 and section 8)."""
    points = torch.cat([one, other])
    squares = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").square()
    n = len(one)
    kernel = torch.exp(-squares / (2 * squares.median().clamp(min=1e-12)))
    value = kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()
    return math.sqrt(max(0.0, float(value)))

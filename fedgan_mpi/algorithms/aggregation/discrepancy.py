"""Shares by the distance between a device's real and generated images (Li et al. 2022, IFL-GAN)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedgan_mpi.algorithms.aggregation.transforms import UpdateTransform, Upload
from fedgan_mpi.federation.networks import NetworkPair


class DiscrepancyShare(UpdateTransform):
    """Replaces the share by exp(MMD). The uplink divides by the sum over devices, which makes it
    their softmax."""

    def __init__(self, pair: NetworkPair) -> None:
        self._pair = pair

    def on_device(self, upload: Upload) -> None:
        """Draws a batch of real images and one of noise."""
        pair = self._pair
        real, z = upload.device.real_batch(), upload.device.noise()
        pair.G.eval()
        fake = pair.fakes(z)
        pair.G.train()
        upload.share = math.exp(mean_discrepancy(real.data.flatten(1), fake.data.flatten(1)))


def mean_discrepancy(one: Tensor, other: Tensor) -> float:
    """Return the maximum mean discrepancy between two samples, (n, d) and (m, d).

    The kernel is Gaussian; its width is the median distance of all points (Gretton et al. 2012,
    arXiv:0805.2368, equation 5 and section 8).
    """
    points = torch.cat([one, other])
    squares = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").square()
    n = len(one)
    kernel = torch.exp(-squares / (2 * squares.median().clamp(min=1e-12)))
    value = kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()
    return math.sqrt(max(0.0, float(value)))

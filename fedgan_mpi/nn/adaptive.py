"""Adaptive discriminator augmentation: the probability p of augmentations follows D's overfitting
(Karras et al. 2020, arXiv:2006.06676)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fedgan_mpi.nn.losses import Loss


class AdaptiveProbability:
    """p, and the mean sign of D's logits on real images, by which p moves.

    D has overfitted to its images if it gives most of them a positive logit.
    """

    def __init__(self, target: float, images: int, like: Tensor) -> None:
        """target: mean sign that is aimed at. images: real images in which p moves from 0 to 1.
        like: dtype and device."""
        self._target, self._images = target, images
        self.p = 0.0
        self.probability = like.new_zeros(())
        """p as a tensor that steps read."""
        self._signs = like.new_zeros(2)  # sum and count since the last `mean_sign`

    def watch(self, loss: Loss) -> Loss:
        """Return the loss, which then also records the signs of D's logits on real images."""

        def real(logits: Tensor) -> Tensor:
            signs = logits.detach().sign()
            self._signs.add_(torch.stack([signs.sum(), torch.ones_like(signs).sum()]))
            return loss.real(logits)

        return replace(loss, real=real)

    def mean_sign(self) -> float | None:
        """Return the mean sign since the last call, in [-1, 1]; None without images."""
        total, count = self._signs.tolist()
        self._signs.zero_()
        return total / count if count else None

    def update(self, sign: float, images: int) -> None:
        """Move p after `images` real images with this mean sign.

        Source: Karras et al. 2020, section 3.1: a fixed step up above the target, else down.
        """
        step = images / self._images
        self.set(min(1.0, max(0.0, self.p + (step if sign > self._target else -step))))

    def set(self, p: float) -> None:
        """Overwrite p."""
        self.p = p
        self.probability.fill_(p)

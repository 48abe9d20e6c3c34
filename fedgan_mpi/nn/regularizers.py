"""Regularizers of D: penalties on its gradient with respect to images, and LeCam. Plain torch."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from fedgan_mpi.nn.losses import Loss
from fedgan_mpi.nn.steps import Batch


class GradientPenalty(NamedTuple):
    """Gradient penalty (Gulrajani et al. 2017, arXiv:1704.00028, algorithm 1)."""

    weight: float
    """λ."""
    eps: Tensor
    """ε (B, 1, 1, 1) from U(0, 1): the interpolation weight of each real image."""

    def loss(self, D: nn.Module, real: Batch, fake: Batch) -> Tensor:
        """Return λ · mean (‖∇D‖ - 1)² at interpolates of real and fake images.

        Conditional networks get the real image's class. Augmentation is the real image's, too.
        """
        count = min(len(real.data), len(fake.data))
        eps = self.eps[:count]
        interpolates = eps * real.data[:count] + (1 - eps) * fake.data[:count]
        labels = (None if each is None else each[:count] for each in (real.classes, real.numbers))
        norms = _input_gradient_norms(D, Batch(interpolates, *labels))
        return self.weight * (norms - 1).square().mean()

    def split(self, parts: int) -> list[GradientPenalty]:
        return [self._replace(eps=eps) for eps in self.eps.tensor_split(parts)]


class ZeroCenteredPenalty(NamedTuple):
    """λ · mean ‖∇D‖² at real images; R1 for λ = γ/2 (Mescheder et al. 2018, arXiv:1801.04406)."""

    weight: float
    """λ."""

    def loss(self, D: nn.Module, real: Batch, fake: Batch) -> Tensor:
        return self.weight * _input_gradient_norms(D, real).square().mean()

    def split(self, parts: int) -> list[ZeroCenteredPenalty]:
        return [self] * parts


class LeCam:
    """LeCam regularization (Tseng et al. 2021, arXiv:2104.03310, equation 3).

    Moving averages of D's logits on real images and on fakes are anchors: D's logits on one kind
    are pulled towards the anchor of the other.
    """

    decay = 0.99

    def __init__(self, weight: float, like: Tensor) -> None:
        """weight: λ. like: dtype and device."""
        self._weight = weight
        self.anchors = like.new_zeros(2)
        """Mean logits on real images and on fakes; a device's own, so part of its state."""

    def apply(self, loss: Loss) -> Loss:
        """Return the loss with the regularization; each call of it moves an anchor."""
        anchor_real, anchor_fake = self.anchors.unbind()

        def real(logits: Tensor) -> Tensor:
            anchor_real.lerp_(logits.detach().mean(), 1 - self.decay)
            return loss.real(logits) + self._weight * relu(logits - anchor_fake).square()

        def fake(logits: Tensor) -> Tensor:
            anchor_fake.lerp_(logits.detach().mean(), 1 - self.decay)
            return loss.fake(logits) + self._weight * relu(anchor_real - logits).square()

        return replace(loss, real=real, fake=fake)


def _input_gradient_norms(D: nn.Module, batch: Batch) -> Tensor:
    """Return the norm (B,) of each logit's gradient with respect to its image."""
    images = batch.data.detach().requires_grad_()
    logits = batch._replace(data=images).through(D)
    (input_gradients,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return input_gradients.flatten(1).norm(dim=1)

"""Optimizer steps of the discriminator, the generator, or both, in plain torch.

Losses are returned as detached scalars, evaluated before the update.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from fedgan_mpi.nn.losses import Loss
from fedgan_mpi.nn.optimizers import Optimizer


class Batch(NamedTuple):
    """Images or noise, with their classes."""

    data: Tensor
    """Images (B, C, H, W) in [-1, 1], or noise (B, nz)."""
    classes: Tensor | None = None
    """One-hot (B, classes); None for unconditional networks."""
    numbers: Tensor | None = None
    """Random numbers for the augmentation of images, (B, numbers); None without augmentation. Of
    noise: for the images that are made from it."""

    def through(self, network: nn.Module) -> Tensor:
        """Return D's logits (B,) of images, or G's images (B, C, H, W) of noise."""
        inputs = (self.data,) if self.classes is None else (self.data, self.classes)
        augmentation = {} if self.numbers is None else {"numbers": self.numbers}
        output: Tensor = network(*inputs, **augmentation)
        return output

    def split(self, parts: int) -> list[Batch]:
        """Cut into at most this many micro-batches of nearly equal size."""
        pieces = [[None] * parts if each is None else each.tensor_split(parts) for each in self]
        batches = [Batch(*piece) for piece in zip(*pieces, strict=True)]
        return [batch for batch in batches if len(batch.data)]

    def generate(self, G: nn.Module) -> Batch:
        """Return the images that G makes from noise."""
        return self._replace(data=self._replace(numbers=None).through(G))


class Penalty(Protocol):
    """A term of D's loss that depends on D itself, not on its logits alone."""

    def loss(self, D: nn.Module, real: Batch, fake: Batch) -> Tensor:
        """Return the term, a mean over images, with a graph for D's parameters."""

    def split(self, parts: int) -> Sequence[Penalty]:
        """Return the penalties of the micro-batches, as `Batch.split` cuts them."""


def discriminator_step(
    D: nn.Module,
    loss: Loss,
    optimizer: Optimizer,
    real: Batch,
    fake: Batch,
    penalty: Penalty | None = None,
    parts: int = 1,
) -> Tensor:
    """Take one optimizer step of D and return its loss.

    parts: micro-batches whose gradients are added up; without BatchNorm, the step is the same.
    Source: the local step of Ren et al. 2021 (arXiv:2107.08681); all other algorithms share it.
    """
    value = discriminator_real_half(D, loss, optimizer, real, parts)
    return value + discriminator_fake_half(D, loss, optimizer, real, fake, penalty, parts)


def discriminator_real_half(
    D: nn.Module, loss: Loss, optimizer: Optimizer, real: Batch, parts: int = 1
) -> Tensor:
    """Compute the gradient of D's loss on real images, the first half of a step.

    Overwrite D's gradient; leave its parameters. Return the loss on real images.
    """
    optimizer.zero_gradient()
    return _add_gradient(lambda part: loss.real(part.through(D)), real, parts)


def discriminator_fake_half(
    D: nn.Module,
    loss: Loss,
    optimizer: Optimizer,
    real: Batch,
    fake: Batch,
    penalty: Penalty | None = None,
    parts: int = 1,
) -> Tensor:
    """Complete a step after `discriminator_real_half`; return the loss on fakes plus penalty."""
    value = _add_fake_gradient(D, loss, real, fake, penalty, parts)
    optimizer.step()
    return value


def generator_step(
    G: nn.Module, D: nn.Module, loss: Loss, optimizer: Optimizer, z: Batch, parts: int = 1
) -> Tensor:
    """Take one optimizer step of G against a fixed D and return G's loss.

    This does not change D's gradient. Source: the server's step of Ren et al. 2021.
    """
    optimizer.zero_gradient()
    with _frozen(D):
        value = _add_gradient(lambda part: loss.generator(part.generate(G).through(D)), z, parts)
    optimizer.step()
    return value


def generator_step_on(fake: Batch, D: nn.Module, loss: Loss, optimizer: Optimizer) -> Tensor:
    """Take one optimizer step of G on fakes that still carry their graph through G."""
    optimizer.zero_gradient()
    value = _add_generator_gradient(D, loss, fake)
    optimizer.step()
    return value


def simultaneous_step(
    G: nn.Module,
    D: nn.Module,
    loss: Loss,
    optimizer_g: Optimizer,
    optimizer_d: Optimizer,
    real: Batch,
    z: Batch,
    penalty: Penalty | None = None,
    parts: int = 1,
) -> tuple[Tensor, Tensor]:
    """Take one step of both networks from the same point; return the losses of D and G.

    Both gradients use the same fakes and the parameters before the step. Source: Rasouli et al.
    2020 (arXiv:2006.07228), algorithm 1.
    """
    d_loss = discriminator_real_half(D, loss, optimizer_d, real, parts)
    optimizer_g.zero_gradient()
    g_loss = torch.zeros_like(d_loss)
    penalties = [None] * parts if penalty is None else penalty.split(parts)
    for real_part, z_part, penalty_part in zip(
        real.split(parts), z.split(parts), penalties, strict=False
    ):
        weight = len(z_part.data) / len(z.data)
        fake = z_part.generate(G)
        detached = fake._replace(data=fake.data.detach())
        d_loss += _add_fake_gradient(D, loss, real_part, detached, penalty_part, weight=weight)
        g_loss += _add_generator_gradient(D, loss, fake, weight)
    optimizer_d.step()
    optimizer_g.step()
    return d_loss, g_loss


def feedback(D: nn.Module, loss: Loss, fake: Batch) -> tuple[Tensor, Tensor]:
    """Return G's mean loss on fakes and its gradient with respect to them, (B, C, H, W).

    Leave D and its gradient unchanged. Source: the error feedback F_n of Hardy et al. 2019
    (arXiv:1811.03850).
    """
    images = fake.data.detach().requires_grad_()
    with _frozen(D):
        value = loss.generator(fake._replace(data=images).through(D)).mean()
        (gradient,) = torch.autograd.grad(value, images)
    return value.detach(), gradient


def logits_and_input_gradients(D: nn.Module, fake: Batch) -> tuple[Tensor, Tensor]:
    """Return D's logits (B,) and the gradient of each logit with respect to its image (B, C, H, W).

    D runs in evaluation mode, so that BatchNorm does not couple the images of a batch. Source: a
    site's answer in Zhang et al. 2021 (arXiv:2102.04655).
    """
    images = fake.data.detach().requires_grad_()
    training = D.training
    D.eval()
    with _frozen(D):
        logits = fake._replace(data=images).through(D)
        (input_gradients,) = torch.autograd.grad(logits.sum(), images)
    D.train(training)
    return logits.detach(), input_gradients


def _backward(value: Tensor, weight: float = 1.0) -> Tensor:
    """Back-propagate a loss, times a weight, and return it."""
    value = value if weight == 1 else weight * value
    value.backward()
    return value.detach()


def _add_gradient(losses: Callable[[Batch], Tensor], batch: Batch, parts: int = 1) -> Tensor:
    """Add the gradient of the mean of `losses`, one per image; return that mean."""
    if parts == 1:
        return _backward(losses(batch).mean())
    count = len(batch.data)
    return sum(  # type: ignore[return-value] # at least one part
        _backward(losses(part).sum() / count) for part in batch.split(parts)
    )


def _add_fake_gradient(
    D: nn.Module,
    loss: Loss,
    real: Batch,
    fake: Batch,
    penalty: Penalty | None,
    parts: int = 1,
    weight: float = 1.0,
) -> Tensor:
    """Add the gradient of the loss on fakes plus penalty, times weight, to D's gradient; return
    that loss."""
    # Real and fake images pass separately, because each batch has its own BatchNorm statistics.
    if parts == 1:
        value = _backward(loss.fake(fake.through(D)).mean(), weight)
        if penalty is not None:
            value += _backward(penalty.loss(D, real, fake), weight)
        return value
    value = _add_gradient(lambda part: loss.fake(part.through(D)), fake, parts)
    if penalty is not None:
        count = len(real.data)
        for real_part, fake_part, penalty_part in zip(
            real.split(parts), fake.split(parts), penalty.split(parts), strict=False
        ):
            share = len(real_part.data) / count
            value += _backward(penalty_part.loss(D, real_part, fake_part), share)
    return value


def _add_generator_gradient(D: nn.Module, loss: Loss, fake: Batch, weight: float = 1.0) -> Tensor:
    """Add the gradient of G's loss on its fakes, times weight, to G's gradient; return the loss."""
    with _frozen(D):
        return _backward(loss.generator(fake.through(D)).mean(), weight)


@contextmanager
def _frozen(D: nn.Module) -> Iterator[None]:
    """Exclude D's parameters from backpropagation."""
    trained = [parameter for parameter in D.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:  # the step is repeated eagerly if its capture as a CUDA graph fails
        for parameter in trained:
            parameter.requires_grad_(True)

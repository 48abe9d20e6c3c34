"""One optimizer step of either player, or of both. Plain torch; never hears of ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedgan_mpi.nn.losses import Loss
from fedgan_mpi.nn.optimizers import Optimizer


class Batch(NamedTuple):
    """Images or noise, and what class each is of."""

    data: Tensor
    """Images (B, C, H, W) in [-1, 1], or noise (B, nz)."""
    classes: Tensor | None = None
    """One-hot (B, classes); None where the networks are unconditional."""

    def through(self, network: nn.Module) -> Tensor:
        """What the network makes of it: G images, D logits (B,)."""
        output: Tensor = network(self.data) if self.classes is None else network(*self)
        return output


class Penalty(NamedTuple):
    """Gradient penalty of Gulrajani et al. 2017 (arXiv:1704.00028), algorithm 1."""

    weight: float
    """λ."""
    mix: Tensor
    """ε (B, 1, 1, 1) from U(0, 1): where between a real image and a fake the slope is looked at."""

    def of(self, D: nn.Module, real: Batch, fake: Batch) -> Tensor:
        """λ · mean (‖∇D‖ - 1)². With a class each, an image between two has the real one's."""
        count = min(len(real.data), len(fake.data))
        mix = self.mix[:count]
        between = mix * real.data[:count] + (1 - mix) * fake.data[:count]
        classes = None if real.classes is None else real.classes[:count]
        logits = Batch(between.requires_grad_(), classes).through(D)
        (slope,) = torch.autograd.grad(logits.sum(), between, create_graph=True)
        return self.weight * (slope.flatten(1).norm(dim=1) - 1).square().mean()


def discriminator_step(
    D: nn.Module,
    loss: Loss,
    optimizer: Optimizer,
    real: Batch,
    fake: Batch,
    penalty: Penalty | None = None,
) -> Tensor:
    """Move D's parameters by one step; gives D's loss before it, a scalar.

    Source: Ren et al. 2021, the devices' step, and every other algorithm's.
    """
    value = discriminator_real_half(D, loss, optimizer, real)
    return value + discriminator_fake_half(D, loss, optimizer, real, fake, penalty)


def discriminator_real_half(D: nn.Module, loss: Loss, optimizer: Optimizer, real: Batch) -> Tensor:
    """The part of a step that needs no fakes: D's gradient is then that of real images alone. Gives
    its part of the loss."""
    optimizer.zero_gradient()
    return _add_gradient(loss.real(real.through(D)).mean())


def discriminator_fake_half(
    D: nn.Module,
    loss: Loss,
    optimizer: Optimizer,
    real: Batch,
    fake: Batch,
    penalty: Penalty | None = None,
) -> Tensor:
    """The rest of the step that `discriminator_half_step` began."""
    value = _fake_gradient(D, loss, real, fake, penalty)
    optimizer.step()
    return value


def generator_step(
    G: nn.Module, D: nn.Module, loss: Loss, optimizer: Optimizer, z: Batch
) -> Tensor:
    """Move G's parameters by one step against a fixed D; gives G's loss before it, a scalar.

    Source: Ren et al. 2021, the server's step. D's parameters get no gradient.
    """
    return generator_step_on(Batch(z.through(G), z.classes), D, loss, optimizer)


def generator_step_on(fake: Batch, D: nn.Module, loss: Loss, optimizer: Optimizer) -> Tensor:
    """The rest of a step whose fakes there are, with the graph through G that made them."""
    optimizer.zero_gradient()
    value = _generator_gradient(D, loss, fake)
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
) -> tuple[Tensor, Tensor]:
    """Move both players by one step, each by its gradient where both stood before, over the same
    fakes; gives D's loss and G's.

    Source: Rasouli et al. 2020 (arXiv:2006.07228), algorithm 1.
    """
    optimizer_d.zero_gradient()
    optimizer_g.zero_gradient()
    fake = Batch(z.through(G), z.classes)
    d_loss = _add_gradient(loss.real(real.through(D)).mean())
    d_loss += _fake_gradient(D, loss, real, Batch(fake.data.detach(), z.classes), penalty)
    g_loss = _generator_gradient(D, loss, fake)
    optimizer_d.step()
    optimizer_g.step()
    return d_loss, g_loss


def feedback(D: nn.Module, loss: Loss, fake: Batch) -> tuple[Tensor, Tensor]:
    """(G's mean loss on fakes, its gradient with respect to them, (B, C, H, W)), D unmoved.

    Source: Hardy et al. 2019 (arXiv:1811.03850), a worker's error feedback F_n.
    """
    images = fake.data.detach().requires_grad_()
    with _frozen(D):
        value = loss.generator(Batch(images, fake.classes).through(D)).mean()
        (gradient,) = torch.autograd.grad(value, images)
    return value.detach(), gradient


def logits_and_input_gradients(D: nn.Module, fake: Batch) -> tuple[Tensor, Tensor]:
    """(logits (B,), each logit's gradient with respect to its own image, (B, C, H, W)).

    D runs in evaluation mode, where BatchNorm does not let one image's logit depend on another.
    Source: Zhang et al. 2021 (arXiv:2102.04655), what a site returns.
    """
    images = fake.data.detach().requires_grad_()
    training = D.training
    D.eval()
    with _frozen(D):
        logits = Batch(images, fake.classes).through(D)
        (input_gradients,) = torch.autograd.grad(logits.sum(), images)
    D.train(training)
    return logits.detach(), input_gradients


def _add_gradient(value: Tensor) -> Tensor:
    value.backward()
    return value.detach()


def _fake_gradient(
    D: nn.Module, loss: Loss, real: Batch, fake: Batch, penalty: Penalty | None
) -> Tensor:
    """Add to D's gradient what fakes and the penalty say; gives their part of the loss."""
    # Real and fake images pass separately: each batch has its own BatchNorm statistics.
    value = _add_gradient(loss.fake(fake.through(D)).mean())
    if penalty is not None:
        value += _add_gradient(penalty.of(D, real, fake))
    return value


def _generator_gradient(D: nn.Module, loss: Loss, fake: Batch) -> Tensor:
    """Add to G's gradient through its fakes; gives its loss."""
    with _frozen(D):
        return _add_gradient(loss.generator(fake.through(D)).mean())


@contextmanager
def _frozen(D: nn.Module) -> Iterator[None]:
    D.requires_grad_(False)
    try:
        yield
    finally:  # a step that could not be recorded is taken once more
        D.requires_grad_(True)

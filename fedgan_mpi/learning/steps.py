"""One optimizer step of either player. Plain torch; never hears of ranks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedgan_mpi.learning.losses import Loss
from fedgan_mpi.learning.optimizers import Optimizer


def discriminator_step(
    G: nn.Module, D: nn.Module, loss: Loss, optimizer: Optimizer, real: Tensor, z: Tensor
) -> Tensor:
    """Move D's parameters by one step with G frozen; gives D's loss before it, a scalar.

    real: (B, C, H, W) in [-1, 1]; z: (B, nz). Both networks run in training mode, so G's BatchNorm
    normalizes by the batch, as when G itself is trained. Source: Ren et al. 2021, the devices'
    step.
    """
    optimizer.zero_gradient()
    with torch.no_grad():
        fake = G(z)
    # Real and fake images pass separately: each batch has its own BatchNorm statistics.
    loss_real = loss.real(D(real))
    loss_real.backward()
    loss_fake = loss.fake(D(fake))
    loss_fake.backward()
    optimizer.step()
    return loss_real.detach() + loss_fake.detach()


def generator_step(
    G: nn.Module, D: nn.Module, loss: Loss, optimizer: Optimizer, z: Tensor
) -> Tensor:
    """Move G's parameters by one step against a fixed D; gives G's loss before it, a scalar.

    Source: Ren et al. 2021, the server's step. D's parameters get no gradient; its BatchNorm
    statistics follow the fakes, as they do where one process trains both.
    """
    optimizer.zero_gradient()
    D.requires_grad_(False)
    loss_generator = loss.generator(D(G(z)))
    loss_generator.backward()
    D.requires_grad_(True)
    optimizer.step()
    return loss_generator.detach()

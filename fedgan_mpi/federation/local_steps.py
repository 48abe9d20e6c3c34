"""A device's optimizer steps, each a function of tensors that can be recorded as a CUDA graph."""

from __future__ import annotations

from torch import Tensor, nn

from fedgan_mpi.federation.networks import NetworkPair
from fedgan_mpi.nn.cuda_graphs import Step
from fedgan_mpi.nn.losses import Loss
from fedgan_mpi.nn.optimizers import Optimizer
from fedgan_mpi.nn.regularizers import GradientPenalty, ZeroCenteredPenalty
from fedgan_mpi.nn.steps import (
    Batch,
    Penalty,
    discriminator_fake_half,
    discriminator_real_half,
    discriminator_step,
    generator_step,
    simultaneous_step,
)


class LocalSteps:
    """A device's optimizer steps on the rank's networks, recorded as CUDA graphs if enabled.

    A step takes tensors, returns losses and draws no random numbers, so it can be recorded.
    """

    def __init__(
        self,
        pair: NetworkPair,
        optimizer: Optimizer,
        generator_optimizer: Optimizer | None,
        parts: int,
    ) -> None:
        """parts: micro-batches per batch."""
        self._pair, self._parts = pair, parts
        self.optimizer, self.generator_optimizer = optimizer, generator_optimizer
        self.real_half = Step(self._real_half, pair.recorder)
        """(real) -> (loss,). Gradient of D on real images; no step yet."""
        self.fake_half = Step(self._fake_half, pair.recorder)
        """(real, z, eps) -> (loss,). Adds the gradient on fakes from noise; takes the step."""
        self.against = Step(self._against, pair.recorder)
        """(real, fake, eps) -> (loss,). A step of D on given fakes."""
        self.simultaneous = Step(self._simultaneous, pair.recorder)
        """(real, z, eps) -> (loss of D, loss of G). One step of both from the same point."""
        self.generator = Step(self._generator, pair.recorder)
        """(z) -> (loss,). A step of G."""

    def _real_half(self, real: Batch) -> tuple[Tensor]:
        return (discriminator_real_half(*self._of_discriminator(), real, self._parts),)

    def _fake_half(self, real: Batch, z: Batch, eps: Tensor | None) -> tuple[Tensor]:
        batches = (real, self._pair.fakes(z), self._penalty(eps))
        return (discriminator_fake_half(*self._of_discriminator(), *batches, self._parts),)

    def _against(self, real: Batch, fake: Batch, eps: Tensor | None) -> tuple[Tensor]:
        batches = (real, fake, self._penalty(eps))
        return (discriminator_step(*self._of_discriminator(), *batches, self._parts),)

    def _simultaneous(self, real: Batch, z: Batch, eps: Tensor | None) -> tuple[Tensor, Tensor]:
        assert self.generator_optimizer is not None
        pair, optimizers = self._pair, (self.generator_optimizer, self.optimizer)
        networks, penalty = (pair.G, pair.critic, pair.loss), self._penalty(eps)
        return simultaneous_step(*networks, *optimizers, real, z, penalty, self._parts)

    def _generator(self, z: Batch) -> tuple[Tensor]:
        assert self.generator_optimizer is not None
        pair, optimizer = self._pair, self.generator_optimizer
        return (generator_step(pair.G, pair.critic, pair.loss, optimizer, z, self._parts),)

    def _of_discriminator(self) -> tuple[nn.Module, Loss, Optimizer]:
        return self._pair.critic, self._pair.loss, self.optimizer

    def _penalty(self, eps: Tensor | None) -> Penalty | None:
        if eps is None:
            return None
        regularizer = self._pair.regularizer
        weight = regularizer.weight * regularizer.interval
        if regularizer.name == "gradient_penalty":
            return GradientPenalty(weight, eps)
        return ZeroCenteredPenalty(weight / 2 if regularizer.name == "r1" else weight)

"""One of the K devices: what it owns, its optimizer steps, and what a checkpoint keeps of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fedgan_mpi.config import Config
from fedgan_mpi.data import Batches
from fedgan_mpi.federation.device_images import Images, to_device
from fedgan_mpi.federation.networks import NetworkPair
from fedgan_mpi.nn.cuda_graphs import Step
from fedgan_mpi.nn.optimizers import Optimizer, make_optimizer
from fedgan_mpi.nn.steps import (
    Batch,
    Penalty,
    discriminator_fake_half,
    discriminator_real_half,
    discriminator_step,
    generator_step,
    simultaneous_step,
)
from fedgan_mpi.random_streams import Purpose, torch_stream


class Device:
    """One of the K devices: its shard, streams and moments, and its steps on the rank's
    networks."""

    def __init__(self, index: int, batches: Batches, pair: NetworkPair, config: Config) -> None:
        self.index, self.batches, self.pair = index, batches, pair
        self.images = Images(batches.shard, pair.flat.vector)
        self.training, self._may_undo = config.training, config.skips_non_finite
        self.moments = config.algorithm.moments
        flat = pair.flat
        self.optimizer = self._make_optimizer(flat.phi, flat.moments_of_discriminator)
        self.noise_stream = torch_stream(config.run.seed, Purpose.FAKE, index)
        self._own: list[tuple[Tensor, Tensor]] = []
        self._before: tuple[list[dict[str, Any]], list[Tensor]] = [], []
        self._begun: tuple[Batch, Tensor] | None = None
        self._drawn: Batch | None = None  # the next real images
        self.real_half = Step(self._half, pair.recorder)
        self.fake_half = Step(self._rest, pair.recorder)
        self.step_against = Step(self._against, pair.recorder)
        self.step_of_both = Step(self._of_both, pair.recorder)
        self.step_of_generator = Step(self._of_generator, pair.recorder)
        self.optimizer_of_generator: Optimizer | None = None
        self.residual: Tensor | None = None
        """What rounding took from its uplinks and is still to be sent."""
        traits = config.algorithm.traits
        if config.link.error_feedback:
            travels = flat.gan if traits.devices_train_generator else flat.discriminator
            self.residual = torch.zeros_like(travels)
        if config.algorithm.statistics_rule == "local":
            self.keep(flat.statistics_of_discriminator)
        if traits.devices_keep_discriminator:
            self.keep(flat.whole_discriminator)
        if traits.devices_train_generator:
            self.optimizer_of_generator = self._make_optimizer(
                flat.theta, flat.moments_of_generator
            )
            if config.algorithm.statistics_rule == "local":
                self.keep(flat.statistics_of_generator)

    def keep(self, section: Tensor) -> None:
        """From now on a section of the rank's vector is this device's own, and comes back whenever
        it works."""
        self._own.append((section, section.clone()))

    @property
    def own(self) -> list[Tensor]:
        """What `keep` was called for, as the device left it."""
        return [mine for _, mine in self._own]

    # ---------------------------------------------------------------- a participant's work

    @contextmanager
    def at_work(self, steps_before: int = 0) -> Iterator[None]:
        """Lay the device's own sections into the vector, and take them back afterwards.

        steps_before: optimizer steps that averaged moments sum up.
        """
        self._come(steps_before)
        yield
        self._leave()

    def _come(self, steps_before: int) -> None:
        if self._may_undo:
            self._before = deepcopy((self._moments(), self.own))
        for section, mine in self._own:
            section.copy_(mine)
        # Adam's moments stay with the device: only parameters are averaged, so a device that sat
        # out a round comes back with its own momentum. The other two are named choices.
        for optimizer in self._optimizers():
            if self.moments == "reset":
                optimizer.reset()
            elif self.moments == "averaged":
                optimizer.set_steps(steps_before)

    def _leave(self) -> None:
        for section, mine in self._own:
            mine.copy_(section)

    def undo(self) -> None:
        """Have moments and own sections as before the work just done. The streams have moved on, so
        that the next try is another."""
        self._load(*self._before)

    def prefetch(self, t: int) -> None:
        """Begin round t: do what its first step can before there are fakes, on the φ that stands in
        the vector. Until `train_discriminator` goes on, nothing has happened that a checkpoint
        would keep."""
        if self.training.discriminator_steps > 0:
            self._come(t * self.training.discriminator_steps)
            self.prefetch_images()
            assert self._drawn is not None
            self._begun, self._drawn = (self._drawn, self.real_half(self._drawn)[0]), None

    @property
    def has_begun(self) -> bool:
        """Whether the rank's vector holds the first half of this device's round."""
        return self._begun is not None

    def prefetch_images(self) -> None:
        """Draw the real images of its next step, if it has not begun that. A checkpoint knows
        nothing of it either."""
        if self._begun is None and self._drawn is None:
            self._drawn = self._draw()
            self.batches.drawn -= self.batches.size  # only looked at

    def forget(self) -> None:
        """Do not go on from what `look_ahead` or `draw_ahead` began."""
        self._begun = self._drawn = None

    def train_discriminator(self, t: int) -> float | None:
        """n_d steps from the φ that stands in the vector; it holds φ_k afterwards. Gives the mean
        loss, None for no steps."""
        steps = self.training.discriminator_steps
        if steps == 0:
            return None
        if self._begun is None:
            self.prefetch(t)
        assert self._begun is not None
        (real, loss), self._begun = self._begun, None
        self.batches.drawn += self.batches.size
        loss = loss + self.fake_half(real, self.noise(), self.mix())[0]
        for _ in range(steps - 1):
            loss += self.discriminator_step(self.real_batch(), self.noise())
        self._leave()
        return float(loss) / steps

    def train_against(self, fake: Batch) -> float | None:
        """n_d steps of the device's D on one batch of real images and the given fakes. Gives the
        mean loss, None for no steps. Call it `at_work`."""
        steps = self.training.discriminator_steps
        loss, real = self._zero(), self.real_batch()
        for _ in range(steps):
            loss += self.step_against(real, fake, self.mix())[0]
        return float(loss) / steps if steps else None

    def train_both(
        self, t: int, steps: int, update: Literal["simultaneous", "alternating"]
    ) -> tuple[float | None, float | None]:
        """So many steps of both networks from where they stand in the vector. Gives the mean losses
        of D and of G, None for no steps."""
        d_loss, g_loss = self._zero(), self._zero()
        with self.at_work(t * steps):
            for _ in range(steps):
                real, z = self.real_batch(), self.noise()
                if update == "simultaneous":
                    losses = self.step_of_both(real, z, self.mix())
                    d_loss += losses[0]
                    g_loss += losses[1]
                else:
                    d_loss += self.discriminator_step(real, z)
                    g_loss += self.step_of_generator(self.noise())[0]
        return (float(d_loss) / steps, float(g_loss) / steps) if steps else (None, None)

    def discriminator_step(self, real: Batch, z: Batch) -> Tensor:
        """One step of D on real images and on fakes from noise; gives its loss."""
        (loss,) = self.real_half(real)
        return loss + self.fake_half(real, z, self.mix())[0]

    # What is recorded where steps are: tensors in, losses out.

    def _half(self, real: Batch) -> tuple[Tensor]:
        pair = self.pair
        return (discriminator_real_half(pair.D, pair.loss, self.optimizer, real),)

    def _rest(self, real: Batch, z: Batch, mix: Tensor | None) -> tuple[Tensor]:
        pair, fake, penalty = self.pair, self.pair.fakes(z), self._penalty(mix)
        optimizer = self.optimizer
        return (discriminator_fake_half(pair.D, pair.loss, optimizer, real, fake, penalty),)

    def _against(self, real: Batch, fake: Batch, mix: Tensor | None) -> tuple[Tensor]:
        pair, penalty = self.pair, self._penalty(mix)
        return (discriminator_step(pair.D, pair.loss, self.optimizer, real, fake, penalty),)

    def _of_both(self, real: Batch, z: Batch, mix: Tensor | None) -> tuple[Tensor, Tensor]:
        assert self.optimizer_of_generator is not None
        pair, penalty = self.pair, self._penalty(mix)
        optimizers = (self.optimizer_of_generator, self.optimizer)
        return simultaneous_step(pair.G, pair.D, pair.loss, *optimizers, real, z, penalty)

    def _of_generator(self, z: Batch) -> tuple[Tensor]:
        assert self.optimizer_of_generator is not None
        pair, optimizer = self.pair, self.optimizer_of_generator
        return (generator_step(pair.G, pair.D, pair.loss, optimizer, z),)

    def real_batch(self) -> Batch:
        """The next real images, (B, C, H, W) in [-1, 1]."""
        if self._drawn is None:
            return self._draw()
        batch, self._drawn = self._drawn, None
        self.batches.drawn += self.batches.size
        return batch

    def _draw(self) -> Batch:
        shard, indices = self.batches.shard, self.batches.next()
        images = self.images.batch(indices)
        if self.pair.class_shares is None:
            return Batch(images)
        assert shard.labels is not None
        return Batch(images, self.pair.one_hot(torch.from_numpy(shard.labels[indices])))

    def noise(self) -> Batch:
        """As much noise as a batch has real images."""
        return self.pair.noise(self.batches.size, self.noise_stream)

    def mix(self) -> Tensor | None:
        """A gradient penalty's ε; None for losses without one."""
        if not self.pair.loss.has_penalty:
            return None
        dtype = self.pair.flat.vector.dtype
        mix = torch.rand(self.batches.size, 1, 1, 1, generator=self.noise_stream, dtype=dtype)
        return to_device(mix, self.pair.torch_device)

    def _penalty(self, mix: Tensor | None) -> Penalty | None:
        return None if mix is None else Penalty(self.training.gradient_penalty, mix)

    def _make_optimizer(self, parameters: nn.Parameter, averaged: Tensor) -> Optimizer:
        of_generator = parameters is self.pair.flat.theta
        training = self.training
        return make_optimizer(
            parameters,
            kind=training.optimizer,
            lr=training.generator_lr if of_generator else training.discriminator_lr,
            betas=training.betas,
            moments=averaged if self.moments == "averaged" else None,
        )

    def _optimizers(self) -> list[Optimizer]:
        both = (self.optimizer, self.optimizer_of_generator)
        return [optimizer for optimizer in both if optimizer is not None]

    def _zero(self) -> Tensor:
        return torch.zeros((), dtype=self.pair.flat.vector.dtype, device=self.pair.torch_device)

    # ---------------------------------------------------------------- checkpoints

    def state(self) -> dict[str, Any]:
        """All that a checkpoint must keep of this device."""
        return {
            "drawn": self.batches.drawn,
            "noise_stream": self.noise_stream.get_state(),
            "moments": self._moments(),
            "own": self.own,
            **present_tensors(residual=self.residual),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.forget()
        self.batches.drawn = state["drawn"]
        self.noise_stream.set_state(state["noise_stream"])
        self._load(state["moments"], state["own"])
        if self.residual is not None:
            self.residual.copy_(state["residual"])

    def _moments(self) -> list[dict[str, Any]]:
        return [optimizer.state() for optimizer in self._optimizers()]

    def _load(self, moments: list[dict[str, Any]], own: list[Tensor]) -> None:
        for optimizer, saved in zip(self._optimizers(), moments, strict=True):
            optimizer.load_state(saved)
        for mine, theirs in zip(self.own, own, strict=True):
            mine.copy_(theirs)


def present_tensors(**optional: Tensor | None) -> dict[str, Tensor]:
    """What there is of it, for a checkpoint."""
    return {name: value for name, value in optional.items() if value is not None}

"""One of the K devices: its shard, random streams and local state, and its local rounds.

A local round trains the networks in the rank's vector, which the caller has filled with the
received parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fedgan_mpi.config import Config
from fedgan_mpi.data import Batches
from fedgan_mpi.federation.augmentation import AugmentationStream
from fedgan_mpi.federation.backdoor import Backdoor
from fedgan_mpi.federation.device_images import Images, to_device
from fedgan_mpi.federation.early_start import EarlyStart, LocalRound
from fedgan_mpi.federation.local_state import LocalState
from fedgan_mpi.federation.local_steps import LocalSteps
from fedgan_mpi.federation.networks import NetworkPair
from fedgan_mpi.nn.control_variates import ControlVariates
from fedgan_mpi.nn.optimizers import SGD, Optimizer, make_optimizer
from fedgan_mpi.nn.proximal import Proximal
from fedgan_mpi.nn.steps import Batch
from fedgan_mpi.random_streams import Purpose, torch_stream


class Device:
    """A device on the rank that hosts it."""

    def __init__(
        self,
        index: int,
        batches: Batches,
        pair: NetworkPair,
        config: Config,
        heartbeat: Callable[[], None] = lambda: None,
        *,
        resident: bool = True,
    ) -> None:
        """index: k, counted from 1. heartbeat: called once per step, to show activity. resident:
        keep the shard in the memory of the rank's GPU, if it has one."""
        self._heartbeat = heartbeat
        self.index, self.batches, self.pair = index, batches, pair
        self.images = Images(
            batches.shard, pair.flat.vector, resident=resident and pair.flat.vector.is_cuda
        )
        self.backdoor, self._round = Backdoor(config.attack, index), 0
        self.training = config.training
        self.noise_stream = torch_stream(config.run.seed, Purpose.FAKE, index)
        self.augmentation = AugmentationStream(pair, config.run.seed, player=index)
        traits, flat = config.algorithm.traits, pair.flat
        self.optimizer = self._make_optimizer(config, flat.phi, flat.moments_of_discriminator)
        self.generator_optimizer: Optimizer | None = None
        own_sections = []
        if config.algorithm.statistics_rule == "local":
            own_sections.append(flat.statistics_of_discriminator)
        if traits.devices_keep_discriminator:
            own_sections.append(flat.whole_discriminator)
        if traits.devices_train_generator:
            self.generator_optimizer = self._make_optimizer(
                config, flat.theta, flat.moments_of_generator
            )
            if config.algorithm.statistics_rule == "local":
                own_sections.append(flat.statistics_of_generator)
        if pair.lecam is not None:
            own_sections.append(pair.lecam.anchors)
        both = (self.optimizer, self.generator_optimizer)
        self.local = LocalState(
            [optimizer for optimizer in both if optimizer is not None],
            own_sections,
            config.algorithm.moments,
            can_undo=config.skips_non_finite,
        )
        self.steps = LocalSteps(pair, *both, self.training.accumulate)
        self.early_start: EarlyStart[float] = EarlyStart()
        self.kept: dict[str, Tensor] = {}
        """State of a compressor, which checkpoints keep."""
        self.residual: Tensor | None = None
        """Error feedback: the rounding error of past uplinks that is still to be sent."""
        if config.link.error_feedback:
            upload = flat.gan if traits.devices_train_generator else flat.discriminator
            self.residual = torch.zeros_like(upload)

    # ---------------------------------------------------------------- local rounds

    def train_discriminator(self, t: int) -> float | None:
        """Take n_d steps on D from the φ in the rank's vector; the vector then holds φ_k.

        Returns the mean loss of D; None for no steps.
        """
        if self.training.discriminator_steps == 0:
            return None
        return self.early_start.finish(lambda: self.discriminator_round(t))

    def discriminator_round(self, t: int) -> LocalRound[float]:
        """Local round t of D. The part before the `yield` needs φ_t but not θ_t.

        A run that is resumed repeats the part before the `yield`, with the same result.
        """
        steps, self._round = self.training.discriminator_steps, t
        self.local.enter(steps_before=t * steps)
        real = self.real_batch()
        self.batches.drawn -= self.batches.size  # they count when the round is finished
        (loss,) = self.steps.real_half(real)
        yield
        self.batches.drawn += self.batches.size
        loss = loss + self.steps.fake_half(real, self.noise(), self.eps())[0]
        for _ in range(steps - 1):
            loss += self._discriminator_step()
        self.local.leave()
        return float(loss) / steps

    def train_against(self, fake: Batch) -> float | None:
        """Take n_d steps of the device's own D on one batch of real images and the given fakes.

        Call it inside `local_state`. Returns the mean loss of D; None for no steps.
        """
        steps = self.training.discriminator_steps
        loss, real = self._zero(), self.real_batch()
        before = (self.batches.drawn // self.batches.size - 1) * steps
        for step in range(before, before + steps):
            self._heartbeat()
            batches = self.augmentation.augment(real), self.augmentation.augment(fake)
            loss += self.steps.against(*batches, self.eps(step))[0]
        return float(loss) / steps if steps else None

    def train_both(
        self, t: int, steps: int, update: Literal["simultaneous", "alternating"]
    ) -> tuple[float | None, float | None]:
        """Take `steps` steps on both networks in the rank's vector.

        Returns the mean losses of D and of G; None for no steps.
        """
        d_loss, g_loss, self._round = self._zero(), self._zero(), t
        with self.local_state(t * steps):
            for _ in range(steps):
                if update == "simultaneous":
                    losses = self.steps.simultaneous(self.real_batch(), self.noise(), self.eps())
                    d_loss += losses[0]
                    g_loss += losses[1]
                else:
                    d_loss += self._discriminator_step()
                    g_loss += self.steps.generator(self.noise())[0]
        return (float(d_loss) / steps, float(g_loss) / steps) if steps else (None, None)

    @contextmanager
    def local_state(self, steps_before: int = 0) -> Iterator[None]:
        """Have the device's own sections in the rank's vector.

        steps_before: optimizer steps that averaged moments have accumulated.
        """
        self.local.enter(steps_before)
        yield
        self.local.leave()

    def _discriminator_step(self) -> Tensor:
        real, z = self.real_batch(), self.noise()
        (loss,) = self.steps.real_half(real)
        return loss + self.steps.fake_half(real, z, self.eps())[0]

    # ---------------------------------------------------------------- batches and noise

    def real_batch(self) -> Batch:
        """Draw the next real images, (B, C, H, W) in [-1, 1]."""
        self._heartbeat()
        shard, indices = self.batches.shard, self.batches.next()
        batch = Batch(self.backdoor.paste(self.images.batch(indices), self._round))
        if self.pair.class_shares is not None:
            assert shard.labels is not None
            labels = torch.from_numpy(shard.labels[indices])
            batch = batch._replace(classes=self.pair.one_hot(labels))
        return self.augmentation.augment_real(batch, self.batches.drawn - len(indices))

    def noise(self) -> Batch:
        """Draw noise for as many fakes as a batch has real images."""
        z = self.pair.noise(self.batches.size, self.noise_stream)
        return self.augmentation.augment(z)

    def eps(self, step: int | None = None) -> Tensor | None:
        """Return the random numbers of the penalty: for `gradient_penalty`, interpolation weights
        (B, 1, 1, 1); for others, none. None if this step has no penalty.

        step: number of the device's step; None: the step of its current batch.
        """
        regularizer, size = self.pair.regularizer, self.batches.size
        if not regularizer.is_penalty:
            return None
        if step is None:
            step = self.batches.drawn // size - 1
        if step % regularizer.interval:
            return None
        dtype = self.pair.flat.vector.dtype
        if regularizer.name != "gradient_penalty":
            return torch.empty(0, dtype=dtype, device=self.pair.torch_device)
        eps = torch.rand(size, 1, 1, 1, generator=self.noise_stream, dtype=dtype)
        return to_device(eps, self.pair.torch_device)

    def set_rate(self, factor: float) -> None:
        """Multiply both learning rates by a factor."""
        for optimizer in self.local.optimizers:
            optimizer.set_factor(factor)

    # ---------------------------------------------------------------- checkpoints

    def state(self) -> dict[str, Any]:
        """Return the state that a checkpoint keeps; tensors are not copied."""
        return {
            "drawn": self.batches.drawn,
            "noise_stream": self.noise_stream.get_state(),
            **self.augmentation.state(),
            "moments": self.local.moments(),
            "own": self.local.own,
            **present_tensors(residual=self.residual),
            **({"kept": self.kept} if self.kept else {}),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Overwrite the state with a result of `state`."""
        self.early_start.discard()
        self.batches.drawn = state["drawn"]
        self.noise_stream.set_state(state["noise_stream"])
        self.augmentation.load_state(state)
        self.local.load(state["moments"], state["own"])
        if self.residual is not None:
            self.residual.copy_(state["residual"])
        for name, tensor in self.kept.items():
            tensor.copy_(state["kept"][name])

    # ---------------------------------------------------------------- inside

    def _make_optimizer(
        self, config: Config, parameters: nn.Parameter, averaged: Tensor
    ) -> Optimizer:
        """averaged: the section of the vector for moments that are averaged."""
        is_generator = parameters is self.pair.flat.theta
        training = config.training
        optimizer = make_optimizer(
            parameters,
            kind=training.optimizer,
            lr=training.rate_of_G if is_generator else training.rate_of_D,
            betas=training.betas,
            options=training.optimizer_options,
            moments=averaged if config.algorithm.moments == "averaged" else None,
        )
        if config.algorithm.control_variates:
            assert isinstance(optimizer, SGD)
            flat = self.pair.flat
            control = flat.control_of_generator if is_generator else flat.control_of_discriminator
            optimizer = ControlVariates(optimizer, control)
        mu = config.algorithm.proximal
        return Proximal(optimizer, mu) if mu > 0 else optimizer

    def _zero(self) -> Tensor:
        return torch.zeros((), dtype=self.pair.flat.vector.dtype, device=self.pair.torch_device)


def present_tensors(**optional: Tensor | None) -> dict[str, Tensor]:
    """Return the entries that are not None."""
    return {name: value for name, value in optional.items() if value is not None}

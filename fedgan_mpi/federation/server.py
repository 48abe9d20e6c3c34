"""The server: its optimizer steps on G, and the state that a checkpoint keeps of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fedgan_mpi.config import Config
from fedgan_mpi.federation.augmentation import AugmentationStream
from fedgan_mpi.federation.device import present_tensors
from fedgan_mpi.federation.early_start import EarlyStart, LocalRound
from fedgan_mpi.federation.networks import NetworkPair
from fedgan_mpi.hardware.ranges import named
from fedgan_mpi.nn.cuda_graphs import Step
from fedgan_mpi.nn.optimizers import make_optimizer
from fedgan_mpi.nn.steps import Batch, generator_step, generator_step_on
from fedgan_mpi.random_streams import Purpose, torch_stream

WARM = 2**40
"""Steps after which no decay is limited by the warm-up."""


class Server:
    """G's optimizer, its noise stream, and the exponential moving average of G."""

    def __init__(
        self, pair: NetworkPair, config: Config, heartbeat: Callable[[], None] = lambda: None
    ) -> None:
        """heartbeat: called once per step, to show activity."""
        self._heartbeat = heartbeat
        self.pair, self.training = pair, config.training
        self.optimizer = make_optimizer(
            pair.flat.theta,
            kind=self.training.optimizer,
            lr=self.training.rate_of_G,
            betas=self.training.betas,
            options=self.training.optimizer_options,
        )
        self.noise_stream = torch_stream(config.run.seed, Purpose.FAKE, 0)
        self.augmentation = AugmentationStream(pair, config.run.seed, player=0)
        self.early_start: EarlyStart[float] = EarlyStart()
        self._recorded_step = Step(self._generator_step, pair.recorder)
        self.decay, self._warmup = config.model.decay, config.model.ema_warmup
        self.ema = pair.flat.whole_generator.clone() if self.decay else None
        """Exponential moving average of G, with its BatchNorm statistics; None if off."""
        self._averaged_steps = 0
        self.kept: dict[str, Tensor] = {}
        """Tensors of the algorithm or its server optimizer that checkpoints keep, by name."""
        self.residual: Tensor | None = None
        """Error feedback: the rounding error of past downlinks that is still to be sent."""
        if config.link.error_feedback:
            self.residual = torch.zeros_like(pair.flat.vector)

    def start_early(self) -> None:
        """Make the fakes of the first step of `train_generator`, which need no D.

        Does nothing if steps are recorded as CUDA graphs, which are replayed whole, or if the batch
        is cut into micro-batches.
        """
        if self.training.server_steps > 0 and self._makes_fakes_first:
            self.early_start.start(self.generator_round())

    def train_generator(self) -> float | None:
        """Take n_g steps on θ against the φ in the vector; return the mean loss, None for no steps.

        D's BatchNorm statistics are restored afterwards, so that D may be sent before G trains.
        """
        steps = self.training.server_steps
        if steps == 0:
            return None
        statistics = self.pair.flat.statistics_of_discriminator
        before = statistics.clone()
        loss = self.early_start.finish(self.generator_round)
        statistics.copy_(before)
        return loss

    def generator_round(self) -> LocalRound[float]:
        """A round of G. The part before the `yield` needs θ_t but not φ_{t+1}."""
        steps = self.training.server_steps
        loss = torch.zeros((), dtype=self.pair.flat.vector.dtype, device=self.pair.torch_device)
        if self._makes_fakes_first:
            fakes = self.make_fakes(self.training.server_batch_size)
            yield
            with named("generator_step"):
                loss += generator_step_on(fakes, self.pair.critic, self.pair.loss, self.optimizer)
            self.update_ema()
            steps -= 1
        for _ in range(steps):
            self._heartbeat()
            loss += self._recorded_step(self.noise(self.training.server_batch_size))[0]
            self.update_ema()
        return float(loss) / self.training.server_steps

    @property
    def _makes_fakes_first(self) -> bool:
        return self.pair.recorder is None and self.training.accumulate == 1

    def make_fakes(self, count: int) -> Batch:
        """Make fakes from fresh noise, with the graph for back-propagation into θ."""
        return self.noise(count).generate(self.pair.G)

    def noise(self, count: int) -> Batch:
        """Draw noise, with the random numbers that augment its images."""
        return self.augmentation.augment(self.pair.noise(count, self.noise_stream))

    def descend(self, fakes: Sequence[Batch], gradients: Sequence[Tensor]) -> None:
        """Take one step on θ, given the loss gradients with respect to batches of fakes."""
        with named("generator_step"):
            self.optimizer.zero_gradient()
            torch.autograd.backward([fake.data for fake in fakes], list(gradients))
            self.optimizer.step()
        self.update_ema()

    def update_ema(self, steps: int = 1) -> None:
        """Move the average towards G, which has taken `steps` steps since the last call."""
        if self.ema is not None:
            first = self._averaged_steps
            self._averaged_steps += steps
            decays = [self._decay_after(t) for t in range(first, self._averaged_steps)]
            self.ema.lerp_(self.pair.flat.whole_generator, 1 - math.prod(decays))

    def start_ema(self, average: Tensor) -> None:
        """Overwrite the average with one of a trained G, which needs no warm-up."""
        if self.ema is not None:
            self.ema.copy_(average)
            self._averaged_steps = WARM

    def _decay_after(self, steps: int) -> float:
        return min(self.decay, (1 + steps) / (10 + steps)) if self._warmup else self.decay

    def set_rate(self, factor: float) -> None:
        """Multiply the learning rate of G by a factor."""
        self.optimizer.set_factor(factor)

    def state(self) -> dict[str, Any]:
        """Return the state that a checkpoint keeps; tensors are not copied."""
        return {
            "vector": self.pair.flat.vector,
            "counters": self.pair.counters(),
            "noise_stream": self.noise_stream.get_state(),
            **self.augmentation.state(),
            "moments": self.optimizer.state(),
            "averaged_steps": self._averaged_steps,
            **present_tensors(average=self.ema, residual=self.residual),
            **({"kept": self.kept} if self.kept else {}),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Overwrite the state with a result of `state`."""
        self.early_start.discard()
        self.pair.flat.vector.copy_(state["vector"])
        for counter, saved in zip(self.pair.counters(), state["counters"], strict=True):
            counter.copy_(saved)
        self.noise_stream.set_state(state["noise_stream"])
        self.augmentation.load_state(state)
        self.optimizer.load_state(state["moments"])
        if self.ema is not None:
            self.ema.copy_(state["average"])
        self._averaged_steps = state["averaged_steps"]
        if self.residual is not None:
            self.residual.copy_(state["residual"])
        for name, tensor in self.kept.items():
            tensor.copy_(state["kept"][name])

    def _generator_step(self, z: Batch) -> tuple[Tensor]:
        pair, parts = self.pair, self.training.accumulate
        return (generator_step(pair.G, pair.critic, pair.loss, self.optimizer, z, parts),)

"""The server: its optimizer steps of G, and what a checkpoint keeps of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fedgan_mpi.config import Config
from fedgan_mpi.federation.device import present_tensors
from fedgan_mpi.federation.networks import NetworkPair
from fedgan_mpi.nn.cuda_graphs import Step
from fedgan_mpi.nn.optimizers import make_optimizer
from fedgan_mpi.nn.steps import Batch, generator_step, generator_step_on
from fedgan_mpi.random_streams import Purpose, torch_stream


class Server:
    """The server's state: G's optimizer and the noise it trains with."""

    def __init__(self, pair: NetworkPair, config: Config) -> None:
        self.pair, self.training = pair, config.training
        self.optimizer = make_optimizer(
            pair.flat.theta,
            kind=self.training.optimizer,
            lr=self.training.generator_lr,
            betas=self.training.betas,
        )
        self.noise_stream = torch_stream(config.run.seed, Purpose.FAKE, 0)
        self.step_of_generator = Step(self._of_generator, pair.recorder)
        self._begun: Batch | None = None
        self.ema = config.model.ema
        self.average = pair.flat.whole_generator.clone() if self.ema else None
        """G's exponential moving average, with its BatchNorm statistics."""
        feeds_back = config.link.error_feedback
        self.residual = torch.zeros_like(pair.flat.vector) if feeds_back else None
        """What rounding took from its downlinks and is still to be sent."""

    def prefetch(self) -> None:
        """Begin `train_generator`: make the fakes of its first step, which need no D. Where steps
        are recorded, they are so as a whole, and there is nothing to begin."""
        if self.training.server_steps > 0 and self.pair.recorder is None:
            self._begun = self.make_fakes(self.training.generator_batch_size)

    def train_generator(self) -> float | None:
        """n_g steps of θ against the φ that stands in the vector. Gives the mean loss, None for no
        steps.

        D is as it was afterwards, its statistics too: so it can go down before G has trained.
        """
        pair, steps = self.pair, self.training.server_steps
        statistics = pair.flat.statistics_of_discriminator
        before = statistics.clone()
        loss = torch.zeros((), dtype=pair.flat.vector.dtype, device=pair.torch_device)
        for _ in range(steps):
            loss += self._generator_step()
            self.follow()
        statistics.copy_(before)
        return float(loss) / steps if steps else None

    def _generator_step(self) -> Tensor:
        pair = self.pair
        fakes, self._begun = self._begun, None
        if fakes is not None:
            return generator_step_on(fakes, pair.D, pair.loss, self.optimizer)
        z = pair.noise(self.training.generator_batch_size, self.noise_stream)
        return self.step_of_generator(z)[0]

    def _of_generator(self, z: Batch) -> tuple[Tensor]:
        pair = self.pair
        return (generator_step(pair.G, pair.D, pair.loss, self.optimizer, z),)

    def make_fakes(self, count: int) -> Batch:
        """Fakes from fresh noise, with the graph through which a step of θ goes back."""
        z = self.pair.noise(count, self.noise_stream)
        return Batch(z.through(self.pair.G), z.classes)

    def descend(self, fakes: Sequence[Batch], gradients: Sequence[Tensor]) -> None:
        """One step of θ down a loss whose gradients with respect to batches of fakes are given."""
        self.optimizer.zero_gradient()
        torch.autograd.backward([fake.data for fake in fakes], list(gradients))
        self.optimizer.step()
        self.follow()

    def follow(self, steps: int = 1) -> None:
        """Move G's average after so many steps that G took, wherever it took them."""
        if self.average is not None:
            self.average.lerp_(self.pair.flat.whole_generator, 1 - self.ema**steps)

    def state(self) -> dict[str, Any]:
        """All that a checkpoint must keep of the server; tensors are its own, not copies."""
        return {
            "vector": self.pair.flat.vector,
            "counters": self.pair.counters(),
            "noise_stream": self.noise_stream.get_state(),
            "moments": self.optimizer.state(),
            **present_tensors(average=self.average, residual=self.residual),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Be what `state` told."""
        self._begun = None
        self.pair.flat.vector.copy_(state["vector"])
        for counter, saved in zip(self.pair.counters(), state["counters"], strict=True):
            counter.copy_(saved)
        self.noise_stream.set_state(state["noise_stream"])
        self.optimizer.load_state(state["moments"])
        if self.average is not None:
            self.average.copy_(state["average"])
        if self.residual is not None:
            self.residual.copy_(state["residual"])

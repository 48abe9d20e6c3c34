"""The server's G learns from discriminators that stay on the devices and are swapped between them
(Hardy, Le Merrer, Sericola 2019, arXiv:1811.03850).

With one batch of fakes (k = 1) and no swap it is an unconditional AsynDGAN (Chang et al. 2020).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedgan_mpi.algorithms.base import Algorithm
from fedgan_mpi.config import Config
from fedgan_mpi.config.algorithm_traits import TRAITS
from fedgan_mpi.federation.device import Device
from fedgan_mpi.federation.fake_batches import FakeBatches
from fedgan_mpi.federation.feedback import Feedback
from fedgan_mpi.federation.rank import RankState
from fedgan_mpi.nn.steps import Batch, feedback
from fedgan_mpi.random_streams import Purpose, numpy_stream
from fedgan_mpi.wireless.cell import RadioRound
from fedgan_mpi.wireless.cost import ComputeCost, CostModel, Payload, Sizes


class MDGAN(Algorithm):
    """Each participant gets two of the server's k batches of fakes, one for D and one for G."""

    traits = TRAITS["mdgan"]

    def __init__(self, rank_state: RankState) -> None:
        super().__init__(rank_state)
        pair, self.batch_size = rank_state.pair, self.training.batch_size
        everyone = range(1, rank_state.participation.devices + 1)
        devices = everyone if self.link.is_server else self.devices
        self.fakes = {k: FakeBatches(pair, batches=2, size=self.batch_size) for k in devices}
        self.feedback = Feedback(rank_state, (self.batch_size, *pair.image_shape))
        self.batches: list[Batch] = []  # the server's k batches of the round

    def round(self, t: int) -> None:
        present = self.rank_state.participation.participants(t)
        if self.server:
            self.make_fakes(present)
        self.link.scatter({k: self.fakes[k].vector for k in present if k in self.fakes})
        self.train_participants(t)  # L steps on each D, then ∂loss/∂fake
        self.link.gather(self.feedback.vectors(present))
        if self.server:
            self.train_generator_on_feedback(present)
        if self.swap_is_due(present, t):
            discriminators = {k: self.devices[k].local.own[0] for k in present if k in self.devices}
            self.link.permute(discriminators, to=self.draw_swap(present, t))

    def make_fakes(self, present: Sequence[int]) -> None:
        """Make k batches; participant n gets X_(n+1 mod k) for D and X_(n mod k) for G."""
        assert self.server is not None
        with self.timed("seconds_server"):
            k = self.config.fake_batches
            self.batches = [self.server.make_fakes(self.batch_size) for _ in range(k)]
            for n, device in enumerate(present, start=1):
                self.fakes[device].put(0, self.batches[(n + 1) % k])
                self.fakes[device].put(1, self.batches[n % k])

    def local_round(self, device: Device, t: int) -> tuple[float | None, float]:
        pair, fakes = self.rank_state.pair, self.fakes[device.index]
        with device.local_state():
            d_loss = device.train_against(fakes.batch(0))
            g_loss, gradient = feedback(
                pair.critic, pair.loss, device.augmentation.augment(fakes.batch(1))
            )
        self.feedback[device.index].copy_(gradient)
        return d_loss, float(g_loss)

    def reject(self, device: Device) -> None:
        super().reject(device)
        self.feedback.refuse(device.index)

    def train_generator_on_feedback(self, present: Sequence[int]) -> None:
        """Take one step on G down the mean over participants of their mean losses."""
        assert self.server is not None
        with self.timed("seconds_server"):
            gradients = [torch.zeros_like(batch.data) for batch in self.batches]
            valid = self.feedback.valid(present)
            for n, device in enumerate(present, start=1):
                if device in valid:
                    gradient: Tensor = gradients[n % len(gradients)]
                    gradient.add_(self.feedback[device], alpha=1 / len(valid))
            self.server.descend(self.batches, gradients)
            self.batches = []

    def swap_is_due(self, present: Sequence[int], t: int) -> bool:
        """Whether the participants of round t exchange their discriminators after it."""
        images = self.rank_state.participation.images
        return swap_is_due(self.rank_state.config, images, present, t)

    def draw_swap(self, present: Sequence[int], t: int) -> dict[int, int]:
        """Draw the permutation of round t, the same on every rank."""
        stream = numpy_stream(self.rank_state.config.run.seed, Purpose.SWAP, t)
        return derangement(present, stream)

    # ---------------------------------------------------------------- costs

    @staticmethod
    def payload(sizes: Sizes) -> Payload:
        return Payload(down=2 * sizes.fakes, up=sizes.fakes)

    def payload_of_round(self, t: int, sizes: Sizes) -> Payload:
        participation = self.rank_state.participation
        swapped = sizes.phi if self.swap_is_due(participation.participants(t), t) else 0
        return Payload(down=2 * sizes.fakes, up=sizes.fakes + swapped)

    @staticmethod
    def compute_cost(cost_model: CostModel) -> ComputeCost:
        config, macs = cost_model.config, cost_model.macs
        device = config.training.discriminator_steps * macs.discriminator_step + macs.feedback
        server = (
            config.algorithm.fake_batches
            * cost_model.sizes.batch
            * (macs.generator_forward + macs.generator_backward)
        )
        return ComputeCost(
            device=[device * cost_model.sizes.batch] * len(cost_model.images), server=server
        )

    @staticmethod
    def wireless_seconds(cost_model: CostModel, radio: RadioRound, t: int) -> float:
        arrived = radio.deliveries(2 * cost_model.sizes.fakes)
        ready = {k: arrived[k] + radio.device_seconds[k] for k in radio.participants}
        seconds = radio.server_seconds + radio.uploads(ready, cost_model.sizes.fakes)
        if swap_is_due(cost_model.config, cost_model.images, radio.participants, t):
            # Through the server: devices have no radio link between them.
            seconds += radio.uploads(dict.fromkeys(ready, 0.0), cost_model.sizes.phi)
            seconds += max(radio.deliveries(cost_model.sizes.phi).values())
        return seconds


def swap_period(config: Config, images: Sequence[int]) -> int:
    """Return the number of rounds between swaps, in which devices see all images E times.

    images: numbers of images on device 1, 2, …
    """
    seen = config.participation.participants(len(images)) * config.training.batch_size
    return max(1, round(config.algorithm.epochs * sum(images) / seen))


def swap_is_due(config: Config, images: Sequence[int], present: Sequence[int], t: int) -> bool:
    """Whether the participants of round t exchange their discriminators after it."""
    due = config.algorithm.epochs > 0 and (t + 1) % swap_period(config, images) == 0
    return due and len(present) > 1


def derangement(devices: Sequence[int], stream: np.random.Generator) -> dict[int, int]:
    """Draw a permutation without fixed points, uniformly: device -> the device that gets its D."""
    while True:
        to = dict(zip(devices, stream.permutation(devices).tolist(), strict=True))
        if all(device != receiver for device, receiver in to.items()):
            return to

"""The server's G learns from the discriminators of all devices as if from one (Zhang et al. 2021,
arXiv:2102.04655; modes `max` and `softmax`: Yonetani et al. 2019, arXiv:1905.09684)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedgan_mpi.algorithms.base import Algorithm
from fedgan_mpi.algorithms.mixture import loss_and_gradient
from fedgan_mpi.config.algorithm_traits import TRAITS
from fedgan_mpi.federation.device import Device
from fedgan_mpi.federation.fake_batches import FakeBatches
from fedgan_mpi.federation.feedback import Feedback
from fedgan_mpi.federation.rank import RankState
from fedgan_mpi.nn.steps import Batch, logits_and_input_gradients
from fedgan_mpi.wireless.cell import RadioRound
from fedgan_mpi.wireless.cost import ComputeCost, CostModel, Payload, Sizes


class UAGAN(Algorithm):
    """All participants judge the same fakes; the server weighs their feedback image by image."""

    traits = TRAITS["uagan"]

    def __init__(self, rank_state: RankState) -> None:
        super().__init__(rank_state)
        pair, self.batch_size = rank_state.pair, self.training.batch_size
        self.fakes = FakeBatches(pair, batches=1, size=self.batch_size)
        # A device's feedback: gradients of its logits with respect to images, then the logits.
        length = self.batch_size * math.prod(pair.image_shape) + self.batch_size
        self.feedback = Feedback(rank_state, [length])
        self.batch: Batch | None = None  # the server's fakes of the round

    def round(self, t: int) -> None:
        present = self.rank_state.participation.participants(t)
        if self.server:
            self.make_fakes()
        self.link.broadcast(self.fakes.vector)
        self.train_participants(t)  # n_d steps on each D, then logits and their gradients
        self.link.gather(self.feedback.vectors(present))
        if self.server:
            self.train_generator_on_feedback(t)

    def make_fakes(self) -> None:
        """Make the batch that all participants judge."""
        assert self.server is not None
        with self.timed("seconds_server"):
            self.batch = self.server.make_fakes(self.batch_size)
            self.fakes.put(0, self.batch)

    def local_round(self, device: Device, t: int) -> tuple[float | None, None]:
        fakes = self.fakes.batch(0)
        with device.local_state():
            d_loss = device.train_against(fakes)
            critic = self.rank_state.pair.critic
            logits, gradients = logits_and_input_gradients(
                critic, device.augmentation.augment(fakes)
            )
        self.feedback[device.index].copy_(torch.cat([gradients.flatten(), logits]))
        return d_loss, None

    def reject(self, device: Device) -> None:
        super().reject(device)
        self.feedback.refuse(device.index)

    def train_generator_on_feedback(self, t: int) -> None:
        """Take one step on G."""
        assert self.server is not None and self.batch is not None
        fakes, self.batch = self.batch, None
        with self.timed("seconds_server"):
            shares = self.valid_shares(t)
            if not shares:
                return
            judgements = {k: self.judgement(k) for k in shares}
            loss, gradient = loss_and_gradient(self.rank_state, fakes, shares, judgements)
            self.server.descend([fakes], [gradient])
        self.metrics.set_loss(self.metrics.g_loss, 0, float(loss))

    def judgement(self, device: int) -> tuple[Tensor, Tensor]:
        """Return a participant's logits, and their gradients with respect to the fakes."""
        feedback = self.feedback[device]
        return feedback[-self.batch_size :], feedback[: -self.batch_size]

    def valid_shares(self, t: int) -> dict[int, float]:
        """Return the shares of participants with finite feedback; they sum to 1."""
        shares = self.rank_state.participation.shares(t)
        valid = {k: shares[k] for k in self.feedback.valid(list(shares))}
        if len(valid) == len(shares):
            return shares
        total = math.fsum(valid.values())
        return {k: share / total for k, share in valid.items()}

    # ---------------------------------------------------------------- costs

    @staticmethod
    def payload(sizes: Sizes) -> Payload:
        return Payload(down=sizes.fakes, up=sizes.fakes + sizes.batch)

    @staticmethod
    def compute_cost(cost_model: CostModel) -> ComputeCost:
        steps, macs = cost_model.config.training.discriminator_steps, cost_model.macs
        device = steps * macs.discriminator_step + macs.feedback
        server = macs.generator_forward + macs.generator_backward
        batch = cost_model.sizes.batch
        return ComputeCost(device=[device * batch] * len(cost_model.images), server=server * batch)

    @staticmethod
    def wireless_seconds(cost_model: CostModel, radio: RadioRound, t: int) -> float:
        sizes = cost_model.sizes
        return (
            radio.server_seconds
            + radio.broadcast(sizes.fakes)
            + radio.uploads(radio.device_seconds, sizes.fakes + sizes.batch)
        )

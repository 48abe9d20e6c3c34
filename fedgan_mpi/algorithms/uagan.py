"""G on the server learns from discriminators that stay with the devices, as if from one (Zhang et
al. 2021, arXiv:2102.04655; modes `max` and `softmax`: Yonetani et al. 2019, arXiv:1905.09684)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fedgan_mpi.algorithms.base import Algorithm
from fedgan_mpi.federation.fake_batches import FakeBatches
from fedgan_mpi.federation.feedback import Feedback
from fedgan_mpi.federation.rank import RankState
from fedgan_mpi.nn.steps import Batch, logits_and_input_gradients
from fedgan_mpi.wireless.cell import RadioRound
from fedgan_mpi.wireless.cost import Payload, Plan, Sizes, Work

Each = Callable[[Tensor], Tensor]


class UAGAN(Algorithm):
    """All participants judge the same fakes; the server weighs their answers image by image."""

    def __init__(self, rank_state: RankState) -> None:
        super().__init__(rank_state)
        pair, self.batch = rank_state.pair, self.training.batch_size
        self.down = FakeBatches(pair, batches=1, size=self.batch)
        # A device's answer: the slopes of its logits, then the logits.
        self.up = Feedback(rank_state, [self.batch * math.prod(pair.image_shape) + self.batch])

    @staticmethod
    def payload(sizes: Sizes) -> Payload:
        return Payload(down=sizes.fakes, up=sizes.fakes + sizes.batch)

    @staticmethod
    def work(plan: Plan) -> Work:
        steps, macs = plan.config.training.discriminator_steps, plan.macs
        device = steps * macs.discriminator_step + macs.feedback
        server = macs.fake + macs.descent
        batch = plan.sizes.batch
        return Work(device=[device * batch] * len(plan.images), server=server * batch)

    @staticmethod
    def wireless_seconds(plan: Plan, air: RadioRound, t: int) -> float:
        sizes = plan.sizes
        return (
            air.server
            + air.broadcast(sizes.fakes)
            + air.uploads(air.device, sizes.fakes + sizes.batch)
        )

    def round(self, t: int) -> None:
        present = self.rank_state.participation.participants(t)
        fakes = self.make_fakes()
        self.link.broadcast(self.down.vector)
        self.train_discriminators(t)  # and leave logits and slopes in `up`
        self.link.gather(self.up.rows(present))
        self.train_on(fakes, t)

    def make_fakes(self) -> list[Batch]:
        """The server's batch, on its way."""
        if self.server is None:
            return []
        with self.computing("seconds_server"):
            fakes = self.server.make_fakes(self.batch)
            self.down.put(0, fakes)
        return [fakes]

    def train_discriminators(self, t: int) -> None:
        """n_d steps of each participant's own D, then its logits of the fakes."""
        fakes = self.down.batch(0)
        with self.computing("seconds_local"):
            for device, _ in self.participants(t):
                with device.at_work():
                    loss = device.train_against(fakes)
                    logits, input_gradients = logits_and_input_gradients(
                        self.rank_state.pair.D, fakes
                    )
                k = device.index
                if self.succeeded(device, loss):
                    self.note("d_loss", k, loss)
                    self.up[k].copy_(torch.cat([input_gradients.flatten(), logits]))
                else:
                    self.up.refuse(k)

    def train_on(self, fakes: Sequence[Batch], t: int) -> None:
        """The server's one step on G."""
        if self.server is None:
            return
        (batch,) = fakes
        with self.computing("seconds_server"):
            shares = self.shares_of_answers(t)
            if not shares:
                return
            answers = [self.up[k].split([batch.data.numel(), self.batch]) for k in shares]
            logits = torch.stack([answer[1] for answer in answers]).requires_grad_()
            loss = self.generator_loss(logits, self.log_shares(shares, batch))
            (weights,) = torch.autograd.grad(loss, logits)
            gradient = torch.zeros_like(batch.data)
            for weight, (input_gradients, _) in zip(weights, answers, strict=True):
                gradient.addcmul_(weight[:, None, None, None], input_gradients.view_as(gradient))
            self.server.descend([batch], [gradient])
        self.note("g_loss", 0, float(loss.detach()))

    def shares_of_answers(self, t: int) -> dict[int, float]:
        """The shares of participants whose answers are finite; they sum to 1."""
        shares = self.rank_state.participation.shares(t)
        answered = {k: shares[k] for k in self.up.given(list(shares))}
        if len(answered) == len(shares):
            return shares
        total = math.fsum(answered.values())
        return {k: share / total for k, share in answered.items()}

    def generator_loss(self, logits: Tensor, log_shares: Tensor) -> Tensor:
        """G's mean loss on one batch, from the logits (N, b) of N participants."""
        each = self.rank_state.pair.loss.generator
        if self.config.mode == "mean":
            return each(logits).mean()
        if self.config.mode == "max":
            return each(logits.max(0).values).mean()
        if self.config.mode == "softmax":
            return (softmax_weights(logits, self.config.sharpness) * each(logits)).sum(0).mean()
        return each(odds(logits, log_shares)).mean()

    def log_shares(self, shares: dict[int, float], batch: Batch) -> Tensor:
        """log π_k, (N, 1); for conditional networks (N, b), by the class of each fake."""
        like = self.flat.vector
        pi = torch.tensor(list(shares.values()), dtype=like.dtype, device=like.device)[:, None]
        if batch.classes is None:
            return pi.log()
        histograms = self.rank_state.participation.histograms
        held = torch.tensor([histograms[k - 1] for k in shares], dtype=like.dtype).to(like.device)
        by_class = held @ batch.classes.T
        total = by_class.sum(0)
        # A class that no participant holds: all judge it, by their shares.
        return torch.where(total > 0, by_class / total.clamp(min=1), pi).log()


def odds(logits: Tensor, log_shares: Tensor) -> Tensor:
    """The logit (b,) of the D whose odds are Σ_k π_k D_k/(1 - D_k).

    logits: (N, b). Source: Zhang et al. 2021, equation 4, in a form that cannot overflow.
    """
    return torch.logsumexp(log_shares + logits, dim=0)


def softmax_weights(logits: Tensor, sharpness: float) -> Tensor:
    """softmax over participants of λ D_k, (N, b), held fixed while G steps.

    Yonetani et al. 2019 (F2A); their λ is trained, ours is given.
    """
    return torch.softmax(sharpness * logits.sigmoid(), dim=0).detach()

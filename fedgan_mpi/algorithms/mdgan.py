"""G on the server learns from discriminators that stay with the devices and move between them
(Hardy, Le Merrer, Sericola 2019, arXiv:1811.03850).

With one batch of fakes (k = 1) and no swap it is an unconditional AsynDGAN (Chang et al. 2020).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fedgan_mpi.algorithms.base import Algorithm
from fedgan_mpi.config import Config
from fedgan_mpi.federation.fake_batches import FakeBatches
from fedgan_mpi.federation.feedback import Feedback
from fedgan_mpi.federation.rank import RankState
from fedgan_mpi.nn.steps import Batch, feedback
from fedgan_mpi.random_streams import Purpose, numpy_stream
from fedgan_mpi.wireless.cell import RadioRound
from fedgan_mpi.wireless.cost import Payload, Plan, Sizes, Work


class MDGAN(Algorithm):
    """Each participant gets two batches of fakes out of k, one for D and one for G."""

    def __init__(self, rank_state: RankState) -> None:
        super().__init__(rank_state)
        pair, self.batch = rank_state.pair, self.training.batch_size
        whom = (
            range(1, rank_state.participation.devices + 1) if self.link.is_server else self.devices
        )
        self.down = {k: FakeBatches(pair, batches=2, size=self.batch) for k in whom}
        self.up = Feedback(rank_state, (self.batch, *pair.image_shape))

    @staticmethod
    def payload(sizes: Sizes) -> Payload:
        return Payload(down=2 * sizes.fakes, up=sizes.fakes)

    def payload_of_round(self, t: int, sizes: Sizes) -> Payload:
        participation = self.rank_state.participation
        present = participation.participants(t)
        due = swap_is_due(self.rank_state.config, participation.images, present, t)
        swapped = sizes.phi if due else 0
        return Payload(down=2 * sizes.fakes, up=sizes.fakes + swapped)

    @staticmethod
    def work(plan: Plan) -> Work:
        config, macs = plan.config, plan.macs
        device = config.training.discriminator_steps * macs.discriminator_step + macs.feedback
        server = config.algorithm.fake_batches * plan.sizes.batch * (macs.fake + macs.descent)
        return Work(device=[device * plan.sizes.batch] * len(plan.images), server=server)

    @staticmethod
    def wireless_seconds(plan: Plan, air: RadioRound, t: int) -> float:
        arrived = air.deliveries(2 * plan.sizes.fakes)
        ready = {k: arrived[k] + air.device[k] for k in air.participants}
        seconds = air.server + air.uploads(ready, plan.sizes.fakes)
        if swap_is_due(plan.config, plan.images, air.participants, t):
            # By way of the server: there is no radio link between devices.
            seconds += air.uploads(dict.fromkeys(ready, 0.0), plan.sizes.phi)
            seconds += max(air.deliveries(plan.sizes.phi).values())
        return seconds

    def round(self, t: int) -> None:
        present = self.rank_state.participation.participants(t)
        fakes = self.make_fakes(present)
        self.link.scatter(_vectors({k: mail.vector for k, mail in self.down.items()}, present))
        self.train_discriminators(t)  # and leave ∂loss/∂fake in `up`
        self.link.gather(self.up.rows(present))
        self.train_on(fakes, present)
        config = self.rank_state.config
        if swap_is_due(config, self.rank_state.participation.images, present, t):
            stream = numpy_stream(config.run.seed, Purpose.SWAP, t)
            mine = {k: device.own[0] for k, device in self.devices.items()}
            self.link.permute(_vectors(mine, present), to=derangement(present, stream))

    def make_fakes(self, present: Sequence[int]) -> list[Batch]:
        """The server's k batches; participant n gets X_(n+1 mod k) for D and X_(n mod k) for G."""
        if self.server is None:
            return []
        with self.computing("seconds_server"):
            k = self.config.fake_batches
            fakes = [self.server.make_fakes(self.batch) for _ in range(k)]
            for n, device in enumerate(present, start=1):
                self.down[device].put(0, fakes[(n + 1) % k])
                self.down[device].put(1, fakes[n % k])
        return fakes

    def train_discriminators(self, t: int) -> None:
        """L steps of each participant's own D, then what it says of the batch for G."""
        pair = self.rank_state.pair
        with self.computing("seconds_local"):
            for device, _ in self.participants(t):
                k = device.index
                with device.at_work():
                    d_loss = device.train_against(self.down[k].batch(0))
                    g_loss, gradient = feedback(pair.D, pair.loss, self.down[k].batch(1))
                if self.succeeded(device, d_loss, float(g_loss)):
                    self.note("d_loss", k, d_loss)
                    self.note("g_loss", k, float(g_loss))
                    self.up[k].copy_(gradient)
                else:
                    self.up.refuse(k)

    def train_on(self, fakes: Sequence[Batch], present: Sequence[int]) -> None:
        """The server's one step on G: the mean over participants of their batches' mean losses."""
        if self.server is None:
            return
        with self.computing("seconds_server"):
            gradients = [torch.zeros_like(batch.data) for batch in fakes]
            answered = self.up.given(present)
            for n, device in enumerate(present, start=1):
                if device in answered:
                    gradients[n % len(fakes)].add_(self.up[device], alpha=1 / len(answered))
            self.server.descend(fakes, gradients)


def swap_period(config: Config, images: Sequence[int]) -> int:
    """Rounds between swaps: all images, so many on device 1, 2, …, pass E times."""
    seen = config.participation.participants(len(images)) * config.training.batch_size
    return max(1, round(config.algorithm.epochs * sum(images) / seen))


def swap_is_due(config: Config, images: Sequence[int], present: Sequence[int], t: int) -> bool:
    """Whether the participants of round t exchange their D's after it."""
    due = config.algorithm.epochs > 0 and (t + 1) % swap_period(config, images) == 0
    return due and len(present) > 1


def derangement(devices: Sequence[int], stream: np.random.Generator) -> dict[int, int]:
    """device -> the device that gets its D: a random permutation that leaves none where it is, each
    equally likely."""
    while True:
        to = dict(zip(devices, stream.permutation(devices).tolist(), strict=True))
        if all(device != receiver for device, receiver in to.items()):
            return to


def _vectors(rows: Mapping[int, Tensor], present: Sequence[int]) -> dict[int, Tensor]:
    """The rows of participants, each as it travels."""
    return {k: row.view(-1) for k, row in rows.items() if k in present}

"""Devices train both networks, the server averages both (Rasouli, Sun, Rajagopal 2020,
arXiv:2006.07228).

Preset `fl_gan`: local steps for E epochs and a plain average, the baseline of Hardy et al. 2019
(arXiv:1811.03850).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedgan_mpi.algorithms.base import Algorithm, Uplink
from fedgan_mpi.config import Config
from fedgan_mpi.federation.batchnorm import BatchNormRecalibration
from fedgan_mpi.federation.device import Device
from fedgan_mpi.federation.importance import ImportanceWeights
from fedgan_mpi.federation.rank import RankState
from fedgan_mpi.wireless.cell import RadioRound
from fedgan_mpi.wireless.cost import Payload, Plan, Sizes, Work


class FedGAN(Algorithm):
    """The baseline of the paper; its update is simultaneous, though most public code alternates."""

    def __init__(self, rank_state: RankState) -> None:
        super().__init__(rank_state)
        self.uplink = Uplink(rank_state, self.flat.gan)
        self.updates = ImportanceWeights(rank_state, self.flat.theta, self.flat.phi)
        self.statistics = BatchNormRecalibration(self.config)
        steps = self.training.discriminator_steps
        # A local step passes D over real images, over fakes and for G's loss; an alternating one
        # makes fakes for either network.
        passes = steps if self.config.local_update == "simultaneous" else 2 * steps
        self.statistics.add(rank_state.pair.G, self.flat.batchnorm_of_generator, passes)
        self.statistics.add(rank_state.pair.D, self.flat.batchnorm_of_discriminator, 3 * steps)

    @staticmethod
    def payload(sizes: Sizes) -> Payload:
        return Payload(down=sizes.theta + sizes.phi, up=sizes.theta + sizes.phi)

    @staticmethod
    def work(plan: Plan) -> Work:
        macs = plan.macs
        step = macs.discriminator_step + macs.generator_step  # simultaneous: over the same fakes
        if plan.config.algorithm.local_update == "alternating":
            step += macs.fake
        steps = local_steps(plan.config, plan.images)
        return Work(
            device=[n * batch * step for n, batch in zip(steps, plan.batches, strict=True)],
            server=0.0,
        )

    @staticmethod
    def wireless_seconds(plan: Plan, air: RadioRound, t: int) -> float:
        both = plan.sizes.theta + plan.sizes.phi
        return air.broadcast(both) + air.uploads(air.device, both) + air.averaging(both)

    def round(self, t: int) -> None:
        self.link.broadcast(self.flat.gan)
        self.uplink.remember()
        self.train_both(t)  # n local steps on both networks for each participant hosted here
        self.uplink.finish()
        self.link.average(self.uplink.rows, into=self.flat.gan)
        self.finish(t)

    def train_both(self, t: int) -> None:
        """Leave Σ share · (θ_k, φ_k) over this rank's participants in the uplink."""
        self.uplink.clear()
        self.updates.begin()
        with self.computing("seconds_local"):
            for device, share in self.participants(t):
                self.uplink.restore()
                steps = self.local_steps(device.index)
                d_loss, g_loss = device.train_both(t, steps, self.config.local_update)
                if self.succeeded(device, d_loss, g_loss):
                    self.note("d_loss", device.index, d_loss)
                    self.note("g_loss", device.index, g_loss)
                    share = self.weigh(device, share)
                    self.metrics.update_norms |= self.updates.apply(device.index, t)
                    self.statistics.before_average()
                    self.uplink.add(device, share)

    def local_steps(self, device: int) -> int:
        return local_steps(self.rank_state.config, self.rank_state.participation.images)[device - 1]

    def weigh(self, device: Device, share: float) -> float:
        """The weight of what the device has just trained."""
        return share

    def finish(self, t: int) -> None:
        """What the server does with the average."""
        if self.server is not None:
            self.statistics.after_average()
            present = self.rank_state.participation.participants(t)
            self.server.follow(max(self.local_steps(k) for k in present))


def local_steps(config: Config, images: Sequence[int]) -> list[int]:
    """Steps of device 1, 2, … between averages; for fl_gan as many as E epochs have."""
    algorithm, training = config.algorithm, config.training
    if algorithm.preset != "fl_gan":
        return [training.discriminator_steps] * len(images)
    return [math.ceil(algorithm.epochs * n / min(n, training.batch_size)) for n in images]

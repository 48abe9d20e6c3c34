"""Devices train both networks, the server averages both (Rasouli, Sun, Rajagopal 2020,
arXiv:2006.07228).

Preset `fl_gan`: local steps for E epochs and a plain average, the baseline of Hardy et al. 2019
(arXiv:1811.03850).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from fedgan_mpi.algorithms.aggregation.build import make_uplink
from fedgan_mpi.algorithms.aggregation.compressors import upload_bits
from fedgan_mpi.algorithms.aggregation.ema import GeneratorEma
from fedgan_mpi.algorithms.aggregation.importance import ImportanceWeighting
from fedgan_mpi.algorithms.aggregation.recalibration import BatchNormRecalibration
from fedgan_mpi.algorithms.aggregation.transforms import UpdateTransform
from fedgan_mpi.algorithms.aggregation.uplink import Uplink
from fedgan_mpi.algorithms.base import AveragingAlgorithm
from fedgan_mpi.config import Config
from fedgan_mpi.config.algorithm_traits import TRAITS
from fedgan_mpi.federation.device import Device
from fedgan_mpi.wireless.cell import RadioRound
from fedgan_mpi.wireless.cost import ComputeCost, CostModel, Payload, Sizes


class FedGAN(AveragingAlgorithm):
    """The baseline. Its local update is simultaneous, though most public code alternates."""

    traits = TRAITS["fedgan"]

    def round(self, t: int) -> None:
        self.link.broadcast(self.flat.gan)  # (θ_t, φ_t)
        self.train_participants(t)  # n local steps on both networks of each participant
        self.link.average(self.uplink, into=self.flat.gan)  # Σ w_k (θ_k, φ_k)

    def train(self, device: Device, t: int) -> tuple[float | None, float | None]:
        return device.train_both(t, self.local_steps(device.index), self.config.local_update)

    def local_steps(self, device: int) -> int:
        """Return the device's steps between averages."""
        return local_steps(self.rank_state.config, self.rank_state.participation.images)[device - 1]

    def most_local_steps(self, t: int) -> int:
        """Return the most steps that a participant of round t takes."""
        return max(self.local_steps(k) for k in self.rank_state.participation.participants(t))

    def make_uplink(self) -> Uplink:
        transforms, last = self.make_transforms(), [self.make_ema()]
        return make_uplink(self.rank_state, self.flat.gan, transforms, last)

    def make_transforms(self) -> list[UpdateTransform]:
        """Return the transforms of the uplink, in order."""
        transforms: list[UpdateTransform] = []
        pair, flat = self.rank_state.pair, self.flat
        if self.rank_state.config.participation.policy == "importance":
            both = (flat.theta, flat.phi)
            transforms.append(ImportanceWeighting(self.rank_state.participation, *both))
        if self.config.statistics_rule == "recalibrate":
            steps = self.training.discriminator_steps
            # A local step passes D over real images, over fakes and for the loss of G; an
            # alternating one makes fakes for either network.
            passes = steps if self.config.local_update == "simultaneous" else 2 * steps
            transforms += [
                BatchNormRecalibration(pair.G, flat.batchnorm_of_generator, passes),
                BatchNormRecalibration(pair.D, flat.batchnorm_of_discriminator, 3 * steps),
            ]
        return transforms

    def make_ema(self) -> GeneratorEma:
        """Return the last transform: the moving average follows the server's new G."""
        return GeneratorEma(self.server, self.most_local_steps)

    # ---------------------------------------------------------------- costs

    @staticmethod
    def payload(sizes: Sizes) -> Payload:
        both = sizes.vectors * (sizes.theta + sizes.phi)
        return Payload(down=both, up=both)

    @staticmethod
    def compute_cost(cost_model: CostModel) -> ComputeCost:
        macs = cost_model.macs
        step = macs.discriminator_step + macs.generator_step  # simultaneous: over the same fakes
        if cost_model.config.algorithm.local_update == "alternating":
            step += macs.generator_forward
        steps = local_steps(cost_model.config, cost_model.images)
        return ComputeCost(
            device=[
                n * batch * step for n, batch in zip(steps, cost_model.batch_sizes, strict=True)
            ],
            server=0.0,
        )

    @staticmethod
    def wireless_seconds(cost_model: CostModel, radio: RadioRound, t: int) -> float:
        both = FedGAN.payload(cost_model.sizes).up
        bits = partial(upload_bits, cost_model.config.aggregation)
        return (
            radio.broadcast(both)
            + radio.uploads(radio.device_seconds, both, bits)
            + radio.averaging(both)
        )


def local_steps(config: Config, images: Sequence[int]) -> list[int]:
    """Return the steps of device 1, 2, … between averages; for fl_gan, the steps of E epochs."""
    algorithm, training = config.algorithm, config.training
    if algorithm.preset != "fl_gan":
        return [training.discriminator_steps] * len(images)
    return [math.ceil(algorithm.epochs * n / min(n, training.batch_size)) for n in images]

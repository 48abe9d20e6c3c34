"""Devices train D, the server averages D and trains G (Ren, Liu, Yu, Guo 2021, arXiv:2107.08681).

The two update schedules run the same steps in a different order. The serial one without noise is
also DP-FedAvg-GAN (Augenstein et al. 2020, arXiv:1911.06679).
"""

from __future__ import annotations

from functools import partial

from fedgan_mpi.algorithms.aggregation.build import make_uplink
from fedgan_mpi.algorithms.aggregation.compressors import upload_bits
from fedgan_mpi.algorithms.aggregation.importance import ImportanceWeighting
from fedgan_mpi.algorithms.aggregation.recalibration import BatchNormRecalibration
from fedgan_mpi.algorithms.aggregation.transforms import UpdateTransform
from fedgan_mpi.algorithms.aggregation.uplink import Uplink
from fedgan_mpi.algorithms.base import AveragingAlgorithm
from fedgan_mpi.algorithms.staleness import make_timeline
from fedgan_mpi.config import Config
from fedgan_mpi.config.algorithm_traits import TRAITS
from fedgan_mpi.federation.device import Device
from fedgan_mpi.federation.rank import RankState
from fedgan_mpi.wireless.cell import RadioRound
from fedgan_mpi.wireless.cost import ComputeCost, CostModel, Memory, Payload, Sizes


class Ren(AveragingAlgorithm):
    """The method of the paper; choices that it leaves open are options."""

    traits = TRAITS["ren"]

    def __init__(self, rank_state: RankState) -> None:
        if rank_state.config.algorithm.staleness > 0:
            self.timeline = make_timeline(rank_state, type(self))
        super().__init__(rank_state)

    @property
    def trains_generator_last(self) -> bool:
        return self.config.schedule == "serial"

    def round(self, t: int) -> None:
        if self.config.schedule == "serial":
            self.serial_round(t)
        else:
            self.parallel_round(t)

    def serial_round(self, t: int) -> None:
        """Devices train first, then the server trains G against their average."""
        self.link.broadcast(self.flat.gan)  # (θ_t, φ_t)
        self.train_participants(t)  # n_d local steps on each participant
        self.link.average(self.uplink, into=self.flat.discriminator)  # φ_{t+1} = Σ w_k φ_k
        self.link.prefetch(self.flat.discriminator)  # hint: travels while G trains
        if self.server:
            self.train_generator()  # n_g steps against φ_{t+1}

    def parallel_round(self, t: int) -> None:
        """Devices and the server train at the same time, from the same D."""
        self.link.broadcast(self.flat.gan)  # (θ_t, φ_t)
        self.train_participants(t)
        if self.server:
            self.train_generator()  # n_g steps against φ_t, at the same time
        self.link.average(self.uplink, into=self.flat.discriminator)

    def train(self, device: Device, t: int) -> tuple[float | None, None]:
        return device.train_discriminator(t), None

    def make_uplink(self) -> Uplink:
        transforms: list[UpdateTransform] = []
        if self.rank_state.config.participation.policy == "importance":
            transforms.append(ImportanceWeighting(self.rank_state.participation, self.flat.phi))
        if self.config.statistics_rule == "recalibrate":
            # A local step passes D twice, over real images and over fakes.
            passes = 2 * self.training.discriminator_steps
            statistics = self.flat.batchnorm_of_discriminator
            transforms.append(BatchNormRecalibration(self.rank_state.pair.D, statistics, passes))
        vector = self.flat.discriminator
        return make_uplink(self.rank_state, vector, transforms, timeline=self.timeline)

    # ---------------------------------------------------------------- costs

    @staticmethod
    def payload(sizes: Sizes) -> Payload:
        up = sizes.vectors * sizes.phi
        return Payload(down=sizes.theta + up, up=up)

    @staticmethod
    def memory(config: Config, sizes: Sizes, devices: int) -> Memory | None:
        if config.algorithm.staleness == 0:
            return None
        return Memory(server=devices * sizes.phi, shared=sizes.theta + sizes.phi)

    @staticmethod
    def compute_cost(cost_model: CostModel) -> ComputeCost:
        training, macs = cost_model.config.training, cost_model.macs
        step = training.discriminator_steps * (macs.generator_forward + macs.discriminator_step)
        server = training.server_steps * training.server_batch_size * macs.generator_step
        return ComputeCost(device=[step * batch for batch in cost_model.batch_sizes], server=server)

    @staticmethod
    def wireless_seconds(cost_model: CostModel, radio: RadioRound, t: int) -> float:
        payload = Ren.payload(cost_model.sizes)
        down = radio.broadcast(payload.down)
        bits = partial(upload_bits, cost_model.config.aggregation)
        devices = radio.uploads(radio.device_seconds, payload.up, bits)
        average = radio.averaging(payload.up)
        if cost_model.config.algorithm.schedule == "serial":
            return down + devices + average + radio.server_seconds
        return down + max(devices, radio.server_seconds) + average

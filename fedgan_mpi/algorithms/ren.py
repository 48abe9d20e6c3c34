"""Devices train D, the server averages D and trains G (Ren, Liu, Yu, Guo 2021, arXiv:2107.08681).

The paper's two update schedules are the same steps in another order. Without noise, the serial one
is also DP-FedAvg-GAN (Augenstein et al. 2020, arXiv:1911.06679).
"""

from __future__ import annotations

from fedgan_mpi.algorithms.base import Algorithm, Uplink
from fedgan_mpi.federation.batchnorm import BatchNormRecalibration
from fedgan_mpi.federation.device import Device
from fedgan_mpi.federation.importance import ImportanceWeights
from fedgan_mpi.federation.rank import RankState
from fedgan_mpi.wireless.cell import RadioRound
from fedgan_mpi.wireless.cost import Payload, Plan, Sizes, Work


class Ren(Algorithm):
    """The paper's method, with its open choices as options."""

    def __init__(self, rank_state: RankState) -> None:
        super().__init__(rank_state)
        self.uplink = Uplink(rank_state, self.flat.discriminator)
        self.updates = ImportanceWeights(rank_state, self.flat.phi)
        self.statistics = BatchNormRecalibration(self.config)
        # Each local step passes D twice, once over real images and once over fakes.
        passes = 2 * self.training.discriminator_steps
        self.statistics.add(rank_state.pair.D, self.flat.batchnorm_of_discriminator, passes)
        # With error feedback, what has gone down once cannot be sent to the same bits again, as a
        # run that is resumed would have to.
        self.sends_ahead = not rank_state.config.link.error_feedback
        self.has_new_discriminator = False  # it came down while G trained

    @staticmethod
    def payload(sizes: Sizes) -> Payload:
        return Payload(down=sizes.theta + sizes.phi, up=sizes.phi)

    @staticmethod
    def work(plan: Plan) -> Work:
        training, macs = plan.config.training, plan.macs
        step = training.discriminator_steps * (macs.fake + macs.discriminator_step)
        server = training.server_steps * training.generator_batch_size * macs.generator_step
        return Work(device=[step * batch for batch in plan.batches], server=server)

    @staticmethod
    def wireless_seconds(plan: Plan, air: RadioRound, t: int) -> float:
        down = air.broadcast(plan.sizes.theta + plan.sizes.phi)
        devices = air.uploads(air.device, plan.sizes.phi)
        average = air.averaging(plan.sizes.phi)
        if plan.config.algorithm.schedule == "serial":
            return down + devices + average + air.server
        return down + max(devices, air.server) + average

    def round(self, t: int) -> None:
        if self.config.schedule == "serial":
            self.serial_round(t)
        else:
            self.parallel_round(t)

    def serial_round(self, t: int) -> None:
        """Devices first, then the server, against their new D: the paper's serial schedule."""
        self.downlink()
        self.begin_generator()  # meanwhile
        self.train_discriminators(t)  # n_d local steps for each participant hosted here
        self.cores.stand_beside_server()
        self.uplink.finish()
        self.link.average(self.uplink.rows, into=self.flat.discriminator)
        if self.link.is_server:
            self.statistics.after_average()
        if self.sends_ahead and t + 1 < self.training.rounds:
            self.link.broadcast(self.flat.discriminator, traffic="ahead")
            self.uplink.remember()
            self.has_new_discriminator = True  # devices begin round t + 1 meanwhile
        if self.link.is_server:
            self.train_generator()  # n_g server steps against the new D

    def parallel_round(self, t: int) -> None:
        """Devices and the server at once, from the same D: the paper's parallel schedule."""
        self.link.broadcast(self.flat.gan)
        self.uplink.remember()
        self.train_discriminators(t)
        if self.link.is_server:
            self.train_generator()  # meanwhile, against the D just sent
        self.uplink.finish()
        self.link.average(self.uplink.rows, into=self.flat.discriminator)
        if self.link.is_server:
            self.statistics.after_average()

    def downlink(self) -> None:
        """θ and φ, or θ alone where φ came down while G trained."""
        if self.has_new_discriminator:
            self.link.broadcast(self.flat.generator, ahead=self.flat.discriminator)
        else:
            self.link.broadcast(self.flat.gan)
            self.uplink.remember()
        self.has_new_discriminator = False

    def prefetch(self, t: int) -> None:
        """Begin round t with the half of a participant's first step that needs D alone, where D is
        here."""
        device = self.first_of(t)
        if device is None or not self.has_new_discriminator or not self._has_room(device, t):
            return super().prefetch(t)
        with self.ahead_of(device), self.computing("seconds_local"):
            device.prefetch(t)

    def _has_room(self, device: Device, t: int) -> bool:
        before = self.rank_state.participation.participants(t).index(device.index)
        return self.cores.has_room_beside_server(before=before)

    def begin_generator(self) -> None:
        """The part of the server's first step that can do without the D that devices are at. Where
        ranks share cores, it would only be in their way."""
        if self.server is not None and not self.link.shared_cores:
            with self.computing("seconds_server"):
                self.server.prefetch()

    def start_over(self) -> None:
        super().start_over()
        self.has_new_discriminator = False

    def train_discriminators(self, t: int) -> None:
        """Leave Σ share · φ_k over this rank's participants in the uplink, for it to finish."""
        self.uplink.clear()
        self.updates.begin()
        with self.computing("seconds_local"):
            # Usually one; several when a rank hosts more.
            for device, share in self.participants(t):
                if not device.has_begun:
                    self.uplink.restore()
                loss = device.train_discriminator(t)
                if self.succeeded(device, loss):
                    self.note("d_loss", device.index, loss)
                    self.metrics.update_norms |= self.updates.apply(device.index, t)
                    self.statistics.before_average()
                    self.uplink.add(device, share)

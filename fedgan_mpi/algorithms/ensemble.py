"""The server trains G against the discriminators of all devices at once, which devices upload.

Ours, so far as we know. It joins the devices' part of Ren et al. 2021 (arXiv:2107.08681) with the
mixtures of UA-GAN (Zhang et al. 2021, arXiv:2102.04655), whose devices send gradients of images.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedgan_mpi.algorithms.base import Algorithm
from fedgan_mpi.algorithms.mixture import loss_and_gradient
from fedgan_mpi.config import Config
from fedgan_mpi.config.algorithm_traits import TRAITS
from fedgan_mpi.federation.device import Device
from fedgan_mpi.federation.rank import RankState
from fedgan_mpi.nn.steps import Batch, logits_and_input_gradients
from fedgan_mpi.wireless.cell import RadioRound
from fedgan_mpi.wireless.cost import ComputeCost, CostModel, Memory, Payload, Sizes


class Ensemble(Algorithm):
    """Each device keeps its φ_k; the server keeps the last upload of each device."""

    traits = TRAITS["ensemble"]

    def __init__(self, rank_state: RankState) -> None:
        super().__init__(rank_state)
        # φ_k with the statistics of D. A device rank sends it without a copy.
        self.discriminators = {k: device.local.own[0] for k, device in self.devices.items()}
        if self.server:
            initial, devices = self.flat.whole_discriminator, rank_state.participation.devices
            self.discriminators = {k: initial.clone() for k in range(1, devices + 1)}
            for k, phi in self.discriminators.items():
                self.server.kept[f"discriminator_{k}"] = phi

    def round(self, t: int) -> None:
        if self.config.schedule == "serial":
            self.serial_round(t)
        else:
            self.parallel_round(t)

    def serial_round(self, t: int) -> None:
        """Devices train first, then the server trains G against their new D's."""
        self.link.broadcast(self.flat.generator)  # θ_t
        self.train_participants(t)  # n_d local steps on each participant's φ_k
        self.link.gather(self.uploads(t))  # φ_k
        if self.server:
            self.train_generator_on_mixture(t)  # n_g steps against all φ_k

    def parallel_round(self, t: int) -> None:
        """Devices and the server train at the same time; the server has the D's of last round."""
        self.link.broadcast(self.flat.generator)  # θ_t
        self.train_participants(t)
        if self.server:
            self.train_generator_on_mixture(t)
        self.link.gather(self.uploads(t))

    def local_round(self, device: Device, t: int) -> tuple[float | None, None]:
        return device.train_discriminator(t), None

    def uploads(self, t: int) -> dict[int, Tensor]:
        """Return the participants' φ_k on this rank. A rejected one still has the φ_k of before,
        which the server has, too."""
        present = self.rank_state.participation.participants(t)
        rows = {k: phi for k, phi in self.discriminators.items() if k in present}
        if self.server:  # in a job of one rank, it hosts the devices
            for k in rows.keys() & self.devices.keys():
                rows[k].copy_(self.devices[k].local.own[0])
        return rows

    def train_generator_on_mixture(self, t: int) -> None:
        """Take the server's n_g steps on G, against the mixture of all devices' D's."""
        participation = self.rank_state.participation
        shares = participation.shares_of(participation.available(t))
        with self.timed("seconds_server"):
            own = self.flat.whole_discriminator.clone()
            losses = [self.generator_step(shares) for _ in range(self.training.server_steps)]
            self.flat.whole_discriminator.copy_(own)
        if losses:
            mean = float(torch.stack(losses).mean())
            self.metrics.set_loss(self.metrics.g_loss, 0, mean)

    def generator_step(self, shares: dict[int, float]) -> Tensor:
        """Take one step on G; return the loss. shares: device -> π_k."""
        assert self.server is not None
        fakes = self.server.make_fakes(self.training.server_batch_size)
        judgements = {k: self.judge(k, fakes) for k in shares}
        loss, gradient = loss_and_gradient(self.rank_state, fakes, shares, judgements)
        self.server.descend([fakes], [gradient])
        return loss

    def judge(self, device: int, fakes: Batch) -> tuple[Tensor, Tensor]:
        """Return the logits of a device's D, and their gradients with respect to the fakes."""
        self.link.heartbeat()
        # One D at a time: the activations of a single D are in memory.
        self.flat.whole_discriminator.copy_(self.discriminators[device])
        return logits_and_input_gradients(self.rank_state.pair.critic, fakes)

    # ---------------------------------------------------------------- costs

    @staticmethod
    def payload(sizes: Sizes) -> Payload:
        return Payload(down=sizes.theta, up=sizes.phi)

    @staticmethod
    def memory(config: Config, sizes: Sizes, devices: int) -> Memory:
        return Memory(server=devices * sizes.phi, shared=sizes.theta)

    @staticmethod
    def compute_cost(cost_model: CostModel) -> ComputeCost:
        training, macs = cost_model.config.training, cost_model.macs
        step = training.discriminator_steps * (macs.generator_forward + macs.discriminator_step)
        all_devices = len(cost_model.images) * macs.feedback
        generator = macs.generator_forward + macs.generator_backward + all_devices
        server = training.server_steps * training.server_batch_size * generator
        return ComputeCost(device=[step * batch for batch in cost_model.batch_sizes], server=server)

    @staticmethod
    def wireless_seconds(cost_model: CostModel, radio: RadioRound, t: int) -> float:
        down = radio.broadcast(cost_model.sizes.theta)
        devices = radio.uploads(radio.device_seconds, cost_model.sizes.phi)
        if cost_model.config.algorithm.schedule == "serial":
            return down + devices + radio.server_seconds
        return down + max(devices, radio.server_seconds)

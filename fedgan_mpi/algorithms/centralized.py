"""The reference: one process trains on the union of all shards. Not a method for private data."""

from __future__ import annotations

from fedgan_mpi.algorithms.base import Algorithm
from fedgan_mpi.config.algorithm_traits import TRAITS
from fedgan_mpi.federation.device import Device
from fedgan_mpi.wireless.cell import RadioRound
from fedgan_mpi.wireless.cost import ComputeCost, CostModel, Payload, Sizes


class Centralized(Algorithm):
    """n_d steps on D, then n_g steps on G, in the server's process; device ranks are idle."""

    traits = TRAITS["centralized"]

    def round(self, t: int) -> None:
        self.train_participants(t)  # the union of all shards is device 1, hosted by the server
        if self.server:
            self.train_generator()

    def local_round(self, device: Device, t: int) -> tuple[float | None, None]:
        return device.train_discriminator(t), None

    # ---------------------------------------------------------------- costs

    @staticmethod
    def payload(sizes: Sizes) -> Payload:
        return Payload(down=0, up=0)

    @staticmethod
    def compute_cost(cost_model: CostModel) -> ComputeCost:
        training, macs = cost_model.config.training, cost_model.macs
        step = training.discriminator_steps * (macs.generator_forward + macs.discriminator_step)
        server = training.server_steps * training.server_batch_size * macs.generator_step
        return ComputeCost(device=[0.0], server=step * cost_model.batch_sizes[0] + server)

    @staticmethod
    def wireless_seconds(cost_model: CostModel, radio: RadioRound, t: int) -> float:
        """Count computation only; collecting the images is free."""
        return sum(radio.device_seconds.values()) + radio.server_seconds

"""The reference: one process with the union of all shards. Not a method for private data."""

from __future__ import annotations

from fedgan_mpi.algorithms.base import Algorithm
from fedgan_mpi.wireless.cell import RadioRound
from fedgan_mpi.wireless.cost import Payload, Plan, Sizes, Work


class Centralized(Algorithm):
    """n_d steps on D, then n_g on G, in the server's process; other ranks only keep it company."""

    @staticmethod
    def payload(sizes: Sizes) -> Payload:
        return Payload(down=0, up=0)

    @staticmethod
    def work(plan: Plan) -> Work:
        training, macs = plan.config.training, plan.macs
        step = training.discriminator_steps * (macs.fake + macs.discriminator_step)
        server = training.server_steps * training.generator_batch_size * macs.generator_step
        return Work(device=[0.0], server=step * plan.batches[0] + server)

    @staticmethod
    def wireless_seconds(plan: Plan, air: RadioRound, t: int) -> float:
        """Nothing is sent; how the images came together is not counted."""
        return sum(air.device.values()) + air.server

    def round(self, t: int) -> None:
        if self.link.is_server:
            with self.computing("seconds_local"):
                for device, _ in self.participants(t):
                    self.note("d_loss", device.index, device.train_discriminator(t))
            self.train_generator()

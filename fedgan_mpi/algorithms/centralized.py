"""The reference: one process with the union of all shards. Not a method for private data."""

from __future__ import annotations

from fedgan_mpi.algorithms.base import Algorithm, Payload, Sizes


class Centralized(Algorithm):
    """n_d steps on D, then n_g on G, in the server's process; other ranks only keep it company."""

    @staticmethod
    def payload(sizes: Sizes) -> Payload:
        return Payload(down=0, up=0)

    def round(self, t: int) -> None:
        if self.link.is_server:
            with self.clock("seconds_local"):
                for device in self.devices.values():
                    self.note("d_loss", device.index, device.train_discriminator(t))
            self.train_generator()

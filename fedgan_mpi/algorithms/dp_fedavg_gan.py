"""The paper's serial schedule with clipped updates and noise (Augenstein et al. 2020,
arXiv:1911.06679)."""

from __future__ import annotations

import math

import torch

from fedgan_mpi.algorithms.ren import Ren
from fedgan_mpi.federation.rank import RankState
from fedgan_mpi.random_streams import Purpose, torch_stream


class DPFedAvgGAN(Ren):
    """Devices send φ_k - φ_t, no longer than C; the server averages plainly and adds noise.

    ε is told by `privacy.py`. It speaks of D's updates, not of the scores' sums of features nor of
    losses, which are the experimenter's. The noise follows from the run's seed, which must then be
    kept secret.
    """

    def __init__(self, rank_state: RankState) -> None:
        super().__init__(rank_state)
        self.received = self.flat.discriminator.clone()
        self.update = torch.zeros_like(self.received)
        self.uplink.normalizes = False  # the noise is for a mean over N, however many are skipped

    def round(self, t: int) -> None:
        self.link.broadcast(self.flat.gan)
        self.uplink.remember()
        self.begin_generator()  # meanwhile
        self.train_discriminators(t)  # and leave Σ clipped (φ_k - φ_t) / N in the uplink
        self.uplink.finish()
        self.link.average(self.uplink.rows, into=self.update)
        if self.link.is_server:
            self.flat.discriminator.add_(self.update)
            self.add_noise(t)
            self.train_generator()  # n_g server steps against the new D

    def train_discriminators(self, t: int) -> None:
        self.uplink.clear()
        self.received.copy_(self.flat.discriminator)
        with self.computing("seconds_local"):
            for device, share in self.participants(t):
                self.uplink.restore()
                loss = device.train_discriminator(t)
                if self.succeeded(device, loss):
                    self.note("d_loss", device.index, loss)
                    self.flat.discriminator.sub_(self.received)
                    self.clip()
                    self.uplink.add(device, share)

    def clip(self) -> None:
        """Shorten the update of φ that stands in the vector to C, which rounding on the wire cannot
        make longer."""
        longest = (self.config.clip or math.inf) / (1 + self.link.wire.real_half)
        length = float(self.flat.phi.detach().norm())
        if length > longest:
            self.flat.phi.data.mul_(longest / length)

    def add_noise(self, t: int) -> None:
        """N(0, (z C / N)²) on the mean of N updates."""
        if self.config.noise == 0:
            return
        seed, phi = self.rank_state.config.run.seed, self.flat.phi
        stream = torch_stream(seed, Purpose.PRIVACY, t)
        noise = torch.randn(phi.shape, generator=stream, dtype=phi.dtype).to(phi.device)
        deviation = self.config.noise * self.config.clip / self.rank_state.participation.count
        phi.data.add_(noise, alpha=deviation)

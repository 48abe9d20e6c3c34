"""The serial schedule of `ren` with clipped updates and noise (Augenstein et al. 2020,
arXiv:1911.06679)."""

from __future__ import annotations

from fedgan_mpi.algorithms.aggregation.build import make_uplink
from fedgan_mpi.algorithms.aggregation.privacy import Clip, GaussianNoise
from fedgan_mpi.algorithms.aggregation.transforms import UpdateTransform
from fedgan_mpi.algorithms.aggregation.uplink import Uplink
from fedgan_mpi.algorithms.ren import Ren
from fedgan_mpi.config.algorithm_traits import TRAITS


class DPFedAvgGAN(Ren):
    """Devices send φ_k - φ_t, of norm at most C. The server adds their plain mean and noise to φ_t.

    `privacy.py` computes ε. It covers the updates of D; it does not cover scores and losses, which
    only the experimenter sees. The noise follows from the run's seed: keep the seed secret.
    """

    traits = TRAITS["dp_fedavg_gan"]

    def make_uplink(self) -> Uplink:
        phi, config = self.flat.phi, self.config
        transforms: list[UpdateTransform] = [Clip(phi, config.clip, self.link.wire.unit_roundoff)]
        if config.noise > 0:
            # N(0, (z C / N)²) on the mean of N updates.
            deviation = config.noise * config.clip / self.rank_state.participation.count
            transforms.append(GaussianNoise(phi, deviation, self.rank_state.config.run.seed))
        return make_uplink(
            self.rank_state,
            self.flat.discriminator,
            transforms,
            sends_updates=True,
            normalizes=False,  # ε assumes a mean over N, also if participants are skipped
        )

"""Your own algorithm: only generators travel; each device keeps its discriminator.

    mpirun -n 9 python -m fedgan_mpi --algorithm.name own_algorithm.py:SharedGenerator \
        --algorithm.options.steps 2

Fan and Liu 2020 (arXiv:2005.03793) compare this to sharing both networks.
"""

from __future__ import annotations

from fedgan_mpi.algorithms.aggregation.build import make_uplink
from fedgan_mpi.algorithms.aggregation.ema import GeneratorEma
from fedgan_mpi.algorithms.aggregation.uplink import Uplink
from fedgan_mpi.algorithms.base import AveragingAlgorithm
from fedgan_mpi.config.algorithm_traits import AlgorithmTraits
from fedgan_mpi.federation.device import Device
from fedgan_mpi.federation.rank import RankState


class SharedGenerator(AveragingAlgorithm):
    """Devices train G and their own D; the server averages G."""

    traits = AlgorithmTraits(devices_train_generator=True, devices_keep_discriminator=True)

    def __init__(self, rank_state: RankState, *, steps: int = 1) -> None:
        """steps: local steps on both networks per round."""
        self.steps = steps
        super().__init__(rank_state)

    def round(self, t: int) -> None:
        self.link.broadcast(self.flat.whole_generator)
        self.train_participants(t)
        self.link.average(self.uplink, into=self.flat.whole_generator)

    def train(self, device: Device, t: int) -> tuple[float | None, float | None]:
        d_loss, g_loss = device.train_both(t, self.steps, "alternating")
        if d_loss is not None and g_loss is not None:
            self.log("advantage_of_d", g_loss - d_loss)  # into stats.jsonl, mean over participants
        return d_loss, g_loss

    def make_uplink(self) -> Uplink:
        ema = GeneratorEma(self.server, lambda t: self.steps)  # the average is scored and exported
        return make_uplink(self.rank_state, self.flat.whole_generator, [ema])

"""The wireless clock: an algorithm's own formula over the simulated cell, round by round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

from fedgan_mpi.algorithms import ALGORITHMS
from fedgan_mpi.algorithms.base import Algorithm
from fedgan_mpi.config import Config, ModelConfig
from fedgan_mpi.wireless.cell import Cell, RadioRound, macs_per_second
from fedgan_mpi.wireless.cost import Plan, payload_sizes

if TYPE_CHECKING:
    from fedgan_mpi.wireless.macs import Macs


class Clock:
    """Simulated seconds of the rounds of one experiment."""

    def __init__(self, algorithm: type[Algorithm], plan: Plan) -> None:
        self._algorithm, self._plan = algorithm, plan
        wireless, devices = plan.config.wireless, len(plan.images)
        self.cell = Cell(wireless, devices)
        work, rates = algorithm.work(plan), macs_per_second(wireless, devices)
        self._device = [macs / rate for macs, rate in zip(work.device, rates, strict=True)]
        self._server = work.server / wireless.server_macs_per_second

    def seconds(
        self,
        t: int,
        participants: Sequence[int],
        measured: tuple[Mapping[int, float], float] | None = None,
    ) -> float:
        """Of round t with these participants. measured: seconds of each of them and of the server,
        for `wireless.compute = "measured"`."""
        device, server = {k: self._device[k - 1] for k in participants}, self._server
        if self._plan.config.wireless.compute == "measured":
            assert measured is not None
            times, server = measured
            device = {k: times[k] for k in participants}
        air = RadioRound(cell=self.cell, participants=participants, device=device, server=server)
        return self._algorithm.wireless_seconds(self._plan, air, t)


def make_clock(
    config: Config, image_shape: tuple[int, int, int], images: Sequence[int], classes: int
) -> Clock:
    """The clock of an experiment. images: of device 1, 2, …, in one number for `centralized`;
    classes: 0 where unconditional."""
    macs, theta, phi = _count(config.model, config.training.loss, image_shape, classes)
    sizes = payload_sizes(config, image_shape, theta, phi)
    plan = Plan(config=config, sizes=sizes, macs=macs, images=images)
    return Clock(ALGORITHMS[config.algorithm.name], plan)


@cache
def _count(
    model: ModelConfig, loss: str, image_shape: tuple[int, int, int], classes: int
) -> tuple[Macs, int, int]:
    """(multiply-accumulates, |G|, |D|), of networks that are built without memory."""
    import torch

    from fedgan_mpi.nn.losses import LOSSES
    from fedgan_mpi.nn.registry import build, count_parameters
    from fedgan_mpi.wireless.macs import count_macs

    with torch.device("meta"):
        G, D = build(model, image_shape, classes)
    macs = count_macs(G, D, LOSSES[loss], image_shape, nz=model.nz, classes=classes)
    return macs, count_parameters(G), count_parameters(D)

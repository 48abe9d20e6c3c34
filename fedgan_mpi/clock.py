"""The wireless clock: an algorithm's own formula over the simulated cell, round by round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedgan_mpi.algorithms.base import Algorithm
from fedgan_mpi.algorithms.plan import Plan
from fedgan_mpi.cluster.wireless import Air, Cell, macs_per_second


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
        air = Air(cell=self.cell, participants=participants, device=device, server=server)
        return self._algorithm.wireless_seconds(self._plan, air, t)

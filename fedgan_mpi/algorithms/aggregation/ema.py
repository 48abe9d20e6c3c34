"""The moving average of G, for algorithms whose devices train G."""

from __future__ import annotations

from collections.abc import Callable

from fedgan_mpi.algorithms.aggregation.transforms import UpdateTransform
from fedgan_mpi.federation.server import Server


class GeneratorEma(UpdateTransform):
    """Moves the server's exponential moving average towards the averaged G."""

    def __init__(self, server: Server | None, steps: Callable[[int], int]) -> None:
        """server: None on device ranks. steps: t -> the steps that G took in round t."""
        self._server, self._steps = server, steps

    def on_server(self, t: int) -> None:
        assert self._server is not None
        self._server.update_ema(self._steps(t))

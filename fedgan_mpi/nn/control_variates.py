"""SCAFFOLD: control variates in every local step (Karimireddy et al. 2020, arXiv:1910.06378)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fedgan_mpi.nn.optimizers import SGD


class ControlVariates(SGD):
    """Gradient descent along g - c_k + c, where c_k is the device's control variate and c the
    server's.

    After a round, c_k is the mean gradient g over its steps. This is option II, c_k - c +
    (x - y) / (K η), without the rounding errors of the difference.
    """

    def __init__(self, optimizer: SGD, server: Tensor) -> None:
        """server: c as received; after a local round, c plus the change of c_k."""
        self.vector, self.gradient, self.lr = optimizer.vector, optimizer.gradient, optimizer.lr
        self.factor = optimizer.factor
        self._server, self._own = server, torch.zeros_like(server)
        self._sum, self._steps = torch.zeros_like(server), server.new_zeros(())

    def begin_round(self) -> None:
        self._sum.zero_()
        self._steps.zero_()

    def step(self) -> None:
        self._sum.add_(self.gradient)
        self._steps += 1
        self.gradient.add_(self._server).sub_(self._own)
        super().step()

    def end_round(self) -> None:
        self._sum.div_(self._steps)
        self._server.add_(self._sum).sub_(self._own)
        self._own.copy_(self._sum)

    def state(self) -> dict[str, Any]:
        return {"control": self._own}

    def load_state(self, state: dict[str, Any]) -> None:
        self._own.copy_(state["control"])

"""FedProx: a proximal term in every local step (Li et al. 2020, arXiv:1812.06127)."""

from __future__ import annotations

from typing import Any

import torch

from fedgan_mpi.nn.optimizers import Optimizer


class Proximal(Optimizer):
    """Adds μ (x - x_t) to the gradient before another optimizer's step.

    It is the gradient of μ/2 ‖x - x_t‖², where x_t are the parameters that the device received.
    """

    def __init__(self, optimizer: Optimizer, mu: float) -> None:
        self.inner, self.mu = optimizer, mu
        self.vector, self.gradient = optimizer.vector, optimizer.gradient
        self.lr, self.follows_schedule = optimizer.lr, optimizer.follows_schedule
        self._received = torch.empty_like(self.vector)

    def begin_round(self) -> None:
        self._received.copy_(self.vector)
        self.inner.begin_round()

    def end_round(self) -> None:
        self.inner.end_round()

    def step(self) -> None:
        self.gradient.add_(self.vector, alpha=self.mu).sub_(self._received, alpha=self.mu)
        self.inner.step()

    def set_factor(self, factor: float) -> None:
        self.inner.set_factor(factor)

    def reset(self) -> None:
        self.inner.reset()

    def set_steps(self, steps: int) -> None:
        self.inner.set_steps(steps)

    def state(self) -> dict[str, Any]:
        return self.inner.state()

    def load_state(self, state: dict[str, Any]) -> None:
        self.inner.load_state(state)

"""Optimizers over one flat vector, with moments that are there from the start.

Not torch.optim: constructing any of its optimizers imports torch's compiler, 150 MB and some
seconds on every rank. On one vector Adam is six operations, and a checkpoint of it two arrays.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn


class Optimizer:
    """Plain gradient descent; what an optimizer offers."""

    def __init__(self, parameters: nn.Parameter, lr: float) -> None:
        """parameters: 1-D, with a gradient vector that stays where it is."""
        assert parameters.grad is not None
        self.vector, self.gradient, self.lr = parameters.data, parameters.grad, lr

    def zero_gradient(self) -> None:
        self.gradient.zero_()

    def step(self) -> None:
        """Move the parameters; the gradient's memory may be overwritten."""
        self.vector.add_(self.gradient, alpha=-self.lr)

    def reset(self) -> None:
        """Forget all moments."""

    def set_steps(self, steps: int) -> None:
        """Say how many steps the moments sum up."""

    def state(self) -> dict[str, Any]:
        """The moments, without copies."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Overwrite the moments with what `state` gave."""


class Adam(Optimizer):
    """Kingma and Ba 2015 (arXiv:1412.6980), algorithm 1, with torch's epsilon."""

    def __init__(
        self,
        parameters: nn.Parameter,
        lr: float,
        betas: tuple[float, float],
        moments: Tensor | None = None,
    ) -> None:
        """moments: where the first and second moments live, 2·len(parameters); None: new zeros."""
        super().__init__(parameters, lr)
        self.betas = betas
        device = self.vector.device
        self.steps = torch.zeros((), dtype=torch.float64, device=device)
        """A tensor, as a step that is recorded and replayed must count, too."""
        if moments is None:
            moments = torch.zeros(2 * len(self.vector), dtype=self.vector.dtype, device=device)
        self.first, self.second = moments.split(len(self.vector))

    def step(self) -> None:
        beta1, beta2 = self.betas
        self.steps += 1
        rest1, rest2 = 1 - beta1**self.steps, (1 - beta2**self.steps).sqrt()
        self.first.lerp_(self.gradient, 1 - beta1)
        self.second.mul_(beta2).addcmul_(self.gradient, self.gradient, value=1 - beta2)
        # The gradient has served: its memory takes the denominator.
        denominator = torch.sqrt(self.second, out=self.gradient)
        denominator.mul_(rest1 / rest2).add_(1e-8 * rest1)
        self.vector.addcdiv_(self.first, denominator, value=-self.lr)

    def reset(self) -> None:
        self.steps.zero_()
        self.first.zero_()
        self.second.zero_()

    def set_steps(self, steps: int) -> None:
        self.steps.fill_(steps)

    def state(self) -> dict[str, Any]:
        return {"steps": int(self.steps), "first": self.first, "second": self.second}

    def load_state(self, state: dict[str, Any]) -> None:
        self.steps.fill_(state["steps"])
        self.first.copy_(state["first"])
        self.second.copy_(state["second"])


def make_optimizer(
    parameters: nn.Parameter,
    *,
    kind: Literal["adam", "sgd"],
    lr: float,
    betas: tuple[float, float],
    moments: Tensor | None = None,
) -> Optimizer:
    """The configured optimizer of one network's flat parameters."""
    if kind == "sgd":
        return Optimizer(parameters, lr)
    return Adam(parameters, lr, betas, moments)

"""SGD and Adam on one flat vector, with moments allocated at construction.

Any optimizer of torch.optim imports torch's compiler at construction. That costs 150 MB and
several seconds on every rank. On one vector, Adam is six operations and its checkpoint two arrays.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from fedgan_mpi import plugins
from fedgan_mpi.config.options import check_options


class Optimizer:
    """The interface of all optimizers. This base class is plain gradient descent."""

    follows_schedule = False
    """Whether `step` multiplies the learning rate by `factor`, which a schedule sets."""

    def __init__(self, parameters: nn.Parameter, lr: float) -> None:
        """Bind a 1-D parameter and its gradient. Neither tensor may be replaced afterwards."""
        assert parameters.grad is not None
        self.vector, self.gradient, self.lr = parameters.data, parameters.grad, lr
        self.factor: Tensor | None = None
        """Factor of the learning rate, a scalar; a tensor, because replays of a CUDA graph read it.
        None for a constant rate."""

    def set_factor(self, factor: float) -> None:
        """Multiply the learning rate by a factor from now on."""
        if self.factor is None:
            self.factor = self.vector.new_ones(())
        self.factor.fill_(factor)

    def zero_gradient(self) -> None:
        self.gradient.zero_()

    def step(self) -> None:
        """Update the parameters in place. The gradient's memory may be overwritten."""
        if self.factor is not None:
            self.gradient.mul_(self.factor)
        self.vector.add_(self.gradient, alpha=-self.lr)

    def begin_round(self) -> None:
        """Called before a local round, when the parameters are those that the device received."""

    def end_round(self) -> None:
        """Called after a local round."""

    def reset(self) -> None:
        """Set all moments and the step count to zero."""

    def set_steps(self, steps: int) -> None:
        """Set the number of steps that the moments have accumulated."""

    def state(self) -> dict[str, Any]:
        """Return the moments, not copied."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Overwrite the moments with a result of `state`."""


class Adam(Optimizer):
    """Adam (Kingma and Ba 2015, arXiv:1412.6980, algorithm 1), with torch's epsilon of 1e-8."""

    follows_schedule = True

    def __init__(
        self,
        parameters: nn.Parameter,
        lr: float,
        betas: tuple[float, float],
        moments: Tensor | None = None,
    ) -> None:
        """Bind a 1-D parameter and its moments.

        moments: storage of the first and second moments, 2·len(parameters); None allocates zeros.
        """
        super().__init__(parameters, lr)
        self.betas = betas
        device = self.vector.device
        self.steps = torch.zeros((), dtype=torch.float64, device=device)
        """The step count. A tensor, so that it also advances in replays of a CUDA graph."""
        if moments is None:
            moments = torch.zeros(2 * len(self.vector), dtype=self.vector.dtype, device=device)
        self.first, self.second = moments.split(len(self.vector))

    def step(self) -> None:
        beta1, beta2 = self.betas
        self.steps += 1
        bias_correction1 = 1 - beta1**self.steps
        bias_correction2_sqrt = (1 - beta2**self.steps).sqrt()
        self.first.lerp_(self.gradient, 1 - beta1)
        self.second.mul_(beta2).addcmul_(self.gradient, self.gradient, value=1 - beta2)
        # The gradient is no longer needed: reuse its memory for the denominator.
        denominator = torch.sqrt(self.second, out=self.gradient)
        denominator.mul_(bias_correction1 / bias_correction2_sqrt).add_(1e-8 * bias_correction1)
        if self.factor is not None:
            denominator.div_(self.factor)
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


class SGD(Optimizer):
    """Gradient descent without momentum."""

    follows_schedule = True


def make_optimizer(
    parameters: nn.Parameter,
    *,
    kind: str,
    lr: float,
    betas: tuple[float, float],
    moments: Tensor | None = None,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> Optimizer:
    """Return an optimizer of one network's flat parameters.

    kind: a name or an import string of a subclass of `Optimizer`. Only Adam takes betas and
    moments; options go to one that is not built in. Raises UserError if it is no such class.
    """
    code, options = check_optimizer(kind, options)
    if code is Adam:
        return Adam(parameters, lr, betas, moments)
    return code(parameters, lr, **options)


def check_optimizer(
    kind: str, options: Mapping[str, Any]
) -> tuple[type[Optimizer], dict[str, Any]]:
    """Return an optimizer's class and its options. Raises UserError if it is none, or if it does
    not take them."""
    code = plugins.load_class("training.optimizer", kind, Optimizer)
    if plugins.is_built_in("training.optimizer", kind):
        return code, {}
    given = ("parameters", "lr")
    return code, check_options("training.optimizer", kind, options, given=given)

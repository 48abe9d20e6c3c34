"""An optimizer over one flat vector, with moments that are there from the start."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn


def make_optimizer(
    parameters: nn.Parameter,
    *,
    kind: Literal["adam", "sgd"],
    lr: float,
    betas: tuple[float, float],
    moments: Tensor | None = None,
) -> torch.optim.Optimizer:
    """Adam or plain gradient descent on a flat parameter vector that has its gradient already.

    moments: where Adam keeps its first and second moments, 2·len(parameters); None allocates zeros.
    One vector instead of a list of tensors makes a step one kernel, and a checkpoint one array.
    """
    if kind == "sgd":
        return torch.optim.SGD([parameters], lr=lr)
    optimizer = torch.optim.Adam([parameters], lr=lr, betas=betas, fused=True)
    if moments is None:
        moments = torch.zeros(
            2 * parameters.numel(), dtype=parameters.dtype, device=parameters.device
        )
    first, second = moments.split(parameters.numel())
    step = torch.zeros((), dtype=torch.float32, device=parameters.device)
    optimizer.state[parameters] = {"step": step, "exp_avg": first, "exp_avg_sq": second}
    return optimizer


def reset(optimizer: torch.optim.Optimizer) -> None:
    """Forget all moments."""
    for state in optimizer.state.values():
        for value in state.values():
            value.zero_()


def set_steps(optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Say how many steps the moments sum up, which Adam's bias correction depends on."""
    for state in optimizer.state.values():
        state["step"].fill_(steps)


def moments_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The moments as a flat dictionary of tensors, empty for sgd; no copies."""
    return {name: value for state in optimizer.state.values() for name, value in state.items()}


def load_moments(optimizer: torch.optim.Optimizer, saved: dict[str, Tensor]) -> None:
    """Overwrite the moments with what `moments_state` gave."""
    for name, value in moments_state(optimizer).items():
        value.copy_(saved[name])

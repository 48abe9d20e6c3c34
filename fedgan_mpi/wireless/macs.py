"""Counts the multiply-accumulates of the optimizer steps. Plain torch; knows no ranks.

The training steps themselves run on copies of the networks on torch's meta device, which allocates
no memory. torch's own formulas count each operation.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from fedgan_mpi.config.training import Regularizer, TrainingConfig
from fedgan_mpi.nn.losses import Loss
from fedgan_mpi.nn.optimizers import Optimizer
from fedgan_mpi.nn.regularizers import GradientPenalty, ZeroCenteredPenalty
from fedgan_mpi.nn.steps import Batch, Penalty, discriminator_step, feedback, generator_step

_IMAGES = 2  # BatchNorm needs more than one


@dataclass(frozen=True, kw_only=True)
class Macs:
    """Multiply-accumulates per image, forward and backward, of convolutions and matrix products."""

    generator_forward: float
    """G makes an image; no gradient."""
    discriminator_step: float
    """A step on D with one real image and one given fake."""
    generator_step: float
    """A step on G with one z: forward and backward through G and D."""
    feedback: float
    """Forward through D and back to a given fake."""
    generator_backward: float
    """Backward through G from a given gradient of its fake."""


def count_macs(
    G: nn.Module,
    D: nn.Module,
    loss: Loss,
    image_shape: tuple[int, int, int],
    *,
    nz: int,
    classes: int,
    regularizer: Regularizer | None = None,
) -> Macs:
    """Count on copies; G and D stay unchanged. `classes` is 0 for unconditional networks.

    regularizer: None for the penalty that belongs to the loss, or none. A penalty of every n-th
    step counts one n-th.
    """
    G, D = copy.deepcopy(G).to("meta"), copy.deepcopy(D).to("meta")
    dtype = next(D.parameters()).dtype

    def empty(*shape: int) -> Tensor:
        return torch.empty(_IMAGES, *shape, dtype=dtype, device="meta")

    labels = empty(classes) if classes else None
    z, images = Batch(empty(nz), labels), Batch(empty(*image_shape), labels)
    if regularizer is None:
        regularizer = TrainingConfig().resolve_regularizer(loss.has_penalty)
    penalty: Penalty = ZeroCenteredPenalty(1.0)
    if regularizer.name == "gradient_penalty":
        penalty = GradientPenalty(1.0, empty(1, 1, 1))
    optimizer = _NoOptimizer()

    def forward() -> None:
        with torch.no_grad():
            z.through(G)

    def forward_and_backward() -> None:
        z.through(G).backward(images.data)

    def step_of_d(penalty: Penalty | None) -> float:
        return _count(lambda: discriminator_step(D, loss, optimizer, images, images, penalty))

    plain = step_of_d(None)
    more = step_of_d(penalty) - plain if regularizer.is_penalty else 0.0
    generator_forward = _count(forward)
    return Macs(
        generator_forward=generator_forward,
        discriminator_step=plain + more / regularizer.interval,
        generator_step=_count(lambda: generator_step(G, D, loss, optimizer, z)),
        feedback=_count(lambda: feedback(D, loss, images)),
        generator_backward=_count(forward_and_backward) - generator_forward,
    )


def _count(function: Callable[[], object]) -> float:
    """Return the multiply-accumulates per image of a call; torch counts two operations for each."""
    with _Counter() as counter:
        function()
    return counter.operations / 2 / _IMAGES


class _Counter(TorchDispatchMode):
    """torch's FlopCounterMode without its module tree, which fails under autograd.grad."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.operations += formula(*args, **(kwargs or {}), out_val=result)
        return result


class _NoOptimizer(Optimizer):
    """Changes no parameter."""

    def __init__(self) -> None:
        pass

    def zero_gradient(self) -> None:
        pass

    def step(self) -> None:
        pass

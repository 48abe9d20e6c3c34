"""Counts the multiply-accumulates of the optimizer steps, from the networks themselves. Plain
torch; never hears of ranks.

The very steps that train run on copies without memory (torch's meta device), and torch's own
formulas count each operation.
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

from fedgan_mpi.nn.losses import Loss
from fedgan_mpi.nn.optimizers import Optimizer
from fedgan_mpi.nn.steps import (
    Batch,
    Penalty,
    discriminator_step,
    feedback,
    generator_step,
)

_IMAGES = 2  # BatchNorm wants more than one


@dataclass(frozen=True, kw_only=True)
class Macs:
    """Multiply-accumulates an image, forward and backward, of convolutions and matrix products."""

    fake: float
    """Of G, making an image without learning from it."""
    discriminator_step: float
    """Of D's step on one real image and one given fake."""
    generator_step: float
    """Of G's step on one z: through G and D and back."""
    feedback: float
    """Of D, saying of a given fake where it should go."""
    descent: float
    """Of G's step when D's word on its fakes is given: back through G, not forward."""


def count_macs(
    G: nn.Module,
    D: nn.Module,
    loss: Loss,
    image_shape: tuple[int, int, int],
    *,
    nz: int,
    classes: int,
) -> Macs:
    """Count on copies. classes: 0 where the networks are unconditional."""
    G, D = copy.deepcopy(G).to("meta"), copy.deepcopy(D).to("meta")
    dtype = next(D.parameters()).dtype

    def empty(*shape: int) -> Tensor:
        return torch.empty(_IMAGES, *shape, dtype=dtype, device="meta")

    named = empty(classes) if classes else None
    z, images = Batch(empty(nz), named), Batch(empty(*image_shape), named)
    penalty = Penalty(1.0, empty(1, 1, 1)) if loss.has_penalty else None
    frozen = _Frozen()

    def fake() -> None:
        with torch.no_grad():
            z.through(G)

    def descend() -> None:
        z.through(G).backward(images.data)

    forward = _count(fake)
    return Macs(
        fake=forward,
        discriminator_step=_count(
            lambda: discriminator_step(D, loss, frozen, images, images, penalty)
        ),
        generator_step=_count(lambda: generator_step(G, D, loss, frozen, z)),
        feedback=_count(lambda: feedback(D, loss, images)),
        descent=_count(descend) - forward,
    )


def _count(act: Callable[[], object]) -> float:
    """Multiply-accumulates an image; torch counts two operations for each."""
    with _Counter() as counter:
        act()
    return counter.operations / 2 / _IMAGES


class _Counter(TorchDispatchMode):
    """torch's FlopCounterMode without its tree of modules, which autograd.grad does not bear."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.operations += formula(*args, **(kwargs or {}), out_val=result)
        return result


class _Frozen(Optimizer):
    """Leaves everything where it is."""

    def __init__(self) -> None:
        pass

    def zero_gradient(self) -> None:
        pass

    def step(self) -> None:
        pass

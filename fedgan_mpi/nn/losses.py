"""The two players' losses, from D's raw logits; one value for each, to be averaged over the
batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import relu, softplus


@dataclass(frozen=True)
class Loss:
    """Both players' losses of each image, elementwise."""

    real: Callable[[Tensor], Tensor]
    """D's loss on the logits of real images; D's loss is real + fake."""
    fake: Callable[[Tensor], Tensor]
    """D's loss on the logits of fakes."""
    generator: Callable[[Tensor], Tensor]
    """G's loss on the logits of its fakes."""
    has_penalty: bool = False
    """D's loss has the gradient penalty, too."""


def _minus(logits: Tensor) -> Tensor:
    return -logits


def _log(logits: Tensor) -> Tensor:
    return softplus(-logits)  # -log D


def _log_of_rest(logits: Tensor) -> Tensor:
    return softplus(logits)  # -log(1 - D)


LOSSES = {
    # Goodfellow et al. 2014, section 3: the same fixed point as the minimax game, but gradients
    # that do not vanish while D wins.
    "nonsaturating": Loss(real=_log, fake=_log_of_rest, generator=_log),
    "saturating": Loss(real=_log, fake=_log_of_rest, generator=lambda x: -softplus(x)),
    # Mao et al. 2017, equation 9: real to 1, fake to 0, and G's fakes to 1.
    "lsgan": Loss(
        real=lambda x: (x - 1).square() / 2,
        fake=lambda x: x.square() / 2,
        generator=lambda x: (x - 1).square() / 2,
    ),
    # Lim and Ye 2017; Miyato et al. 2018, equations 16 and 17.
    "hinge": Loss(real=lambda x: relu(1 - x), fake=lambda x: relu(1 + x), generator=_minus),
    # Gulrajani et al. 2017, algorithm 1.
    "wgan-gp": Loss(real=_minus, fake=lambda x: x, generator=_minus, has_penalty=True),
}

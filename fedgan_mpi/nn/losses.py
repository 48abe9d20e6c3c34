"""GAN losses of both players as functions of D's raw logits, elementwise.

The optimizer steps average them over the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.nn.functional import relu, softplus

from fedgan_mpi import plugins
from fedgan_mpi.config.options import check_options
from fedgan_mpi.errors import UserError


@dataclass(frozen=True)
class Loss:
    """The losses of D and G. Each function maps logits (B,) to losses (B,)."""

    real: Callable[[Tensor], Tensor]
    """D's loss on real images. D minimizes real + fake."""
    fake: Callable[[Tensor], Tensor]
    """D's loss on fakes."""
    generator: Callable[[Tensor], Tensor]
    """G's loss on its fakes."""
    has_penalty: bool = False
    """Whether D's loss includes the gradient penalty."""


def _negative(logits: Tensor) -> Tensor:
    return -logits


def _negative_log_d(logits: Tensor) -> Tensor:
    return softplus(-logits)  # -log D for D = sigmoid(logit)


def _negative_log_one_minus_d(logits: Tensor) -> Tensor:
    return softplus(logits)  # -log(1 - D)


nonsaturating = Loss(
    real=_negative_log_d, fake=_negative_log_one_minus_d, generator=_negative_log_d
)
"""Cross entropy (Goodfellow et al. 2014, arXiv:1406.2661, end of section 3).

It has the fixed point of the minimax game, but its gradient does not vanish if D rejects the fakes.
"""
saturating = Loss(
    real=_negative_log_d, fake=_negative_log_one_minus_d, generator=lambda x: -softplus(x)
)
"""The minimax loss (Goodfellow et al. 2014, equation 1)."""
lsgan = Loss(
    real=lambda x: (x - 1).square() / 2,
    fake=lambda x: x.square() / 2,
    generator=lambda x: (x - 1).square() / 2,
)
"""Least squares, targets 1 for real, 0 for fake, 1 for G (Mao et al. 2017, arXiv:1611.04076)."""
hinge = Loss(real=lambda x: relu(1 - x), fake=lambda x: relu(1 + x), generator=_negative)
"""Hinge (Lim and Ye 2017, arXiv:1705.02894; Miyato et al. 2018, arXiv:1802.05957)."""
wgan_gp = Loss(real=_negative, fake=lambda x: x, generator=_negative, has_penalty=True)
"""Wasserstein with gradient penalty (Gulrajani et al. 2017, arXiv:1704.00028, algorithm 1)."""


def scale_discriminator(loss: Loss, factor: float) -> Loss:
    """Return a loss whose part for D is multiplied by a factor."""
    return replace(loss, real=lambda x: factor * loss.real(x), fake=lambda x: factor * loss.fake(x))


def make_loss(name: str, options: Mapping[str, Any]) -> Loss:
    """Return the loss of a name or an import string: a `Loss`, or a function that makes one.

    Raises UserError if it is none.
    """
    options = check_options("training.loss", name, options)
    code = plugins.load("training.loss", name)
    loss = code(**options) if callable(code) else code
    if not isinstance(loss, Loss):
        raise UserError(
            f"training.loss is {name!r}, but must be a Loss or a function that makes one"
        )
    return loss


LOSSES = {
    "nonsaturating": nonsaturating,
    "saturating": saturating,
    "lsgan": lsgan,
    "hinge": hinge,
    "wgan-gp": wgan_gp,
}

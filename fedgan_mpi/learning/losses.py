"""The two players' losses, from D's raw logits. Means over the batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import softplus


@dataclass(frozen=True)
class Loss:
    real: Callable[[Tensor], Tensor]
    """D's loss on the logits of real images; D's loss is real + fake."""
    fake: Callable[[Tensor], Tensor]
    """D's loss on the logits of fakes."""
    generator: Callable[[Tensor], Tensor]
    """G's loss on the logits of its fakes."""


def _real(logits: Tensor) -> Tensor:
    return softplus(-logits).mean()  # -log D(x)


def _fake(logits: Tensor) -> Tensor:
    return softplus(logits).mean()  # -log(1 - D(G(z)))


LOSSES = {
    # Goodfellow et al. 2014, section 3: the same fixed point as the minimax game, but gradients
    # that do not vanish while D wins.
    "nonsaturating": Loss(
        real=_real, fake=_fake, generator=lambda logits: softplus(-logits).mean()
    ),
    "saturating": Loss(real=_real, fake=_fake, generator=lambda logits: -softplus(logits).mean()),
}

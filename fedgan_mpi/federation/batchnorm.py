"""What an average does to BatchNorm's running variances, and how `recalibrate` mends it.

The variance of a union of batches is the mean of the batches' variances plus the variance of their
means. Averaging running variances keeps the first term only. Where every device makes `passes`
passes from equal statistics, with momentum m, its running mean moves by a = 1 - (1 - m)^passes of
the way to its own mean, so the variance between running means, divided by a, is what the average
lost (exact if a device's batch mean is the same in all of its passes). Σ w_k (v_k + μ_k²/a) - (Σ
w_k μ_k)²/a carries it with no further number on the wire.
"""

from __future__ import annotations

from torch import Tensor, nn

from fedgan_mpi.config import AlgorithmConfig


class BatchNormRecalibration:
    """`algorithm.batchnorm = "recalibrate"` for the networks that are averaged; otherwise it does
    nothing."""

    def __init__(self, config: AlgorithmConfig) -> None:
        self._on = config.statistics_rule == "recalibrate"
        self._sections: list[tuple[Tensor, float]] = []

    def add(self, network: nn.Module, statistics: Tensor, passes: int) -> None:
        """statistics: the network's [means | variances]; passes: that a device makes a round."""
        a = movement(network, passes)
        if self._on and a > 0:
            self._sections.append((statistics, a))

    def before_average(self) -> None:
        """Overwrite [means | variances] with [means | variances + means²/a]: what can be
        averaged."""
        for statistics, a in self._sections:
            means, variances = statistics.chunk(2)
            variances.addcmul_(means, means, value=1 / a)

    def after_average(self) -> None:
        """Undo it on the average: the variance between devices stays in."""
        for statistics, a in self._sections:
            means, variances = statistics.chunk(2)
            variances.addcmul_(means, means, value=-1 / a).clamp_(min=0)


def movement(network: nn.Module, passes: int) -> float:
    """The share a of the way that a running mean moves in so many passes; 0 without BatchNorm or
    passes."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.momentum is not None:
            return 1.0 - (1.0 - module.momentum) ** passes
    return 0.0

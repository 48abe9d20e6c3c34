"""Recalibration of BatchNorm's running variances under averaging.

The variance of a union of batches is the mean of the batches' variances plus the variance of their
means. The average of running variances contains the first term only. From equal statistics, a
device's running mean moves by a = 1 - (1 - m)^passes of the distance to its batch mean, with
momentum m. So the average misses the variance between running means divided by a. This is exact if
a device's batch mean is equal in all of its passes.

Σ w_k (v_k + μ_k²/a) - (Σ w_k μ_k)²/a includes the missing term, and needs no further messages.
"""

from __future__ import annotations

from torch import Tensor, nn

from fedgan_mpi.algorithms.aggregation.transforms import UpdateTransform, Upload


class BatchNormRecalibration(UpdateTransform):
    """`algorithm.batchnorm = "recalibrate"` for one averaged network."""

    def __init__(self, network: nn.Module, statistics: Tensor, passes: int) -> None:
        """statistics: the network's [means | variances], a part of the rank's vector.
        passes: forward passes of a device per round."""
        self._statistics = statistics
        self._movement = movement(network, passes)

    def on_device(self, upload: Upload) -> None:
        """Replace variances by variances + means²/a, which may be averaged."""
        if self._movement > 0:
            means, variances = self._statistics.chunk(2)
            variances.addcmul_(means, means, value=1 / self._movement)

    def on_server(self, t: int) -> None:
        """Subtract means²/a of the average; the variance between devices remains."""
        if self._movement > 0:
            means, variances = self._statistics.chunk(2)
            variances.addcmul_(means, means, value=-1 / self._movement).clamp_(min=0)


def movement(network: nn.Module, passes: int) -> float:
    """Return a, the share of the distance that a running mean moves in `passes` passes; 0 without
    BatchNorm or passes."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.momentum is not None:
            return 1.0 - (1.0 - module.momentum) ** passes
    return 0.0

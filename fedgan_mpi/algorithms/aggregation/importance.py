"""Importance weighting: unbiased averages under the participation policy `importance`."""

from __future__ import annotations

import math

from torch import Tensor

from fedgan_mpi.algorithms.aggregation.transforms import UpdateTransform, Upload
from fedgan_mpi.federation.participation import Participation


class ImportanceWeighting(UpdateTransform):
    """Multiplies each update by its share over its inclusion probability (Horvitz and Thompson
    1952), so that the average is unbiased over draws.

    BatchNorm statistics and moments stay unchanged: a scaled variance may be negative.
    """

    needs_received = True

    def __init__(self, participation: Participation, *parameters: Tensor) -> None:
        """parameters: the parts of the uploaded vector that are updates, 1-D views of it."""
        self._participation = participation
        self._parameters = [each.detach() for each in parameters]

    def on_device(self, upload: Upload) -> None:
        """Also records the norm of the update, on which the policy depends."""
        factor = self._participation.inverse_probability(upload.round)[upload.device.index]
        squares = 0.0
        for parameter in self._parameters:
            received = upload.received_part(parameter)
            parameter.sub_(received)
            squares += float(parameter.norm()) ** 2
            parameter.mul_(factor).add_(received)
        upload.metrics.update_norms[upload.device.index] = math.sqrt(squares)

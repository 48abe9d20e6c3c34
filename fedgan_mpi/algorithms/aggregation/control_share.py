"""The server's control variates under partial participation (SCAFFOLD)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fedgan_mpi.algorithms.aggregation.transforms import UpdateTransform, Upload
from fedgan_mpi.federation.participation import Participation


class ControlShare(UpdateTransform):
    """Keeps c = Σ p_k c_k over all devices, with p_k their shares if all take part.

    A participant uploads c + P (new c_k - c_k), where P is the sum of the participants' p_k. With
    equal shares it is N / K, as in the paper.
    """

    needs_received = True

    def __init__(self, participation: Participation, controls: Sequence[Tensor]) -> None:
        """controls: the parts of the uploaded vector that are control variates, 1-D views of it."""
        self._participation = participation
        self._controls = [each.detach() for each in controls]

    def on_device(self, upload: Upload) -> None:
        part = self._participation.part(upload.round)
        for control in self._controls:
            received = upload.received_part(control)
            control.sub_(received).mul_(part).add_(received)

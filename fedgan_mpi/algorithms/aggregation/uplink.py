"""A rank's upload: the weighted sum of its participants' vectors, or one row per hosted device.

With rows, the server sums in device order, so the result does not depend on which rank hosts which
device.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedgan_mpi.algorithms.aggregation.transforms import UpdateTransform, Upload
from fedgan_mpi.algorithms.local_metrics import LocalMetrics
from fedgan_mpi.federation.device import Device
from fedgan_mpi.federation.rank import RankState


class Uplink:
    """Implements the link's `Uplink` for algorithms that average vectors.

    A round calls `begin`, `add` for each participant, and `link.average`.
    """

    def __init__(
        self,
        rank_state: RankState,
        vector: Tensor,
        transforms: Sequence[UpdateTransform] = (),
        *,
        sends_updates: bool = False,
        normalizes: bool | None = None,
    ) -> None:
        """vector: the slice of the rank's vector that is averaged.
        sends_updates: upload v_k - v instead of v_k, and add the mean to v.
        normalizes: divide by the sum of the shares; None: if participants may be skipped."""
        self.link, self.vector, self.transforms = rank_state.link, vector, list(transforms)
        self._sends_updates = sends_updates
        skips = rank_state.config.skips_non_finite
        self.normalizes = skips if normalizes is None else normalizes
        self._shares_sum = 0.0  # over this rank's participants
        self._round: int | None = None

        in_order = self.link.in_order
        hosted = -(-rank_state.participation.devices // max(1, self.link.device_ranks))
        self.rows = self.make_sums(hosted if in_order else 1)
        self._row_of = {
            device.index: row if in_order else 0 for row, device in enumerate(rank_state.devices)
        }
        self._filled: set[int] = set()  # rows with numbers of this round
        self._stale: set[int] = set()  # rows with numbers of an earlier round
        self._residuals: list[tuple[Tensor, Tensor]] = []  # (row, the device's residual)

        self._keeps_received = (
            sends_updates
            or len(rank_state.devices) > 1
            or any(transform.needs_received for transform in self.transforms)
        )
        self._received = vector.clone() if self._keeps_received else vector
        self._update = torch.zeros_like(vector) if sends_updates else None

    def make_sums(self, count: int) -> Tensor:
        """Collective. Return this rank's rows for sums, (count, n)."""
        return self.link.rows(count, self.vector)

    def bits(self, count: int, bits_per_number: int) -> int:
        """Return the bits in which `count` parameters are sent."""
        return count * bits_per_number

    def begin(self, t: int) -> None:
        """Start round t: remember the received vector. Further calls for round t do nothing."""
        if self._round == t:
            return
        self._round = t
        self._stale |= self._filled
        self._filled = set()
        self._shares_sum, self._residuals = 0.0, []
        if self._keeps_received:
            self._received.copy_(self.vector)

    def discard(self) -> None:
        """Forget a round that has begun, after a rollback."""
        self._round = None

    def restore_received(self) -> None:
        """Fill the vector with the received values, before the next hosted device trains."""
        if self._keeps_received:
            self.vector.copy_(self._received)

    def add(self, device: Device, share: float, metrics: LocalMetrics) -> None:
        """Transform a participant's upload and add share · vector."""
        assert self._round is not None
        if self._sends_updates:
            self.vector.sub_(self._received)
        upload = Upload(
            device, self._round, share, self.vector, self._received, metrics, self._sends_updates
        )
        self._transform(upload)
        self._shares_sum += upload.share
        place = self._row_of[device.index]
        row = self.rows[place]
        if place in self._filled:
            row.add_(self.vector, alpha=upload.share)
        else:
            torch.mul(self.vector, upload.share, out=row)
        self._filled.add(place)
        self._stale.discard(place)
        if self.link.in_order and device.residual is not None:
            self._residuals.append((row, device.residual))

    def _transform(self, upload: Upload) -> None:
        for transform in self.transforms:
            transform.on_device(upload)

    # ---------------------------------------------------------------- called by link.average

    def send(self, into: Tensor) -> None:
        """Sum the rows of all ranks on the server. Collective."""
        self._prepare_server()
        self.link.reduce(*self.seal(into))

    def seal(self, into: Tensor) -> tuple[Tensor, Tensor]:
        """Collective if `normalizes`. Zero the rows of absent devices, make shares sum to 1, and
        apply error feedback. Returns the rows and the vector for their sum."""
        for place in self._stale:
            self.rows[place].zero_()
        self._stale.clear()
        if self.normalizes:
            total = self.link.sum(np.array([self._shares_sum]))[0]
            if total > 0 and abs(total - 1) > 1e-9:  # rounding of shares alone is smaller
                self.rows.div_(total)
        for row, residual in self._residuals:
            self.link.wire.round_with_feedback(row, residual)
        return self.rows, into if self._update is None else self._update

    def finish(self, into: Tensor) -> None:
        """Turn the mean into the server's new vector."""
        assert self._round is not None
        if self._update is not None:
            into.add_(self._update)
        self._change_on_server()

    def _prepare_server(self) -> None:
        assert self._round is not None
        if self.link.is_server:
            for transform in self.transforms:
                transform.before_average(self._round)

    def _change_on_server(self) -> None:
        assert self._round is not None
        for transform in self.transforms:
            transform.on_server(self._round)

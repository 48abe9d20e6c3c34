"""The uplink of rounds whose uploads may arrive late (`algorithm.staleness`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedgan_mpi.algorithms.aggregation.row_uplink import RowUplink
from fedgan_mpi.algorithms.aggregation.transforms import UpdateTransform
from fedgan_mpi.federation.rank import RankState
from fedgan_mpi.wireless.timeline import Timeline


class StaleUplink(RowUplink):
    """Merges uploads in the rounds in which they arrive in the simulated cell.

    A device sends φ_k in its own round, and the vector waits on the server. The server changes φ by
    Σ w_k (φ_k - φ^k), with the parameters φ^k that device k received.
    """

    def __init__(
        self,
        rank_state: RankState,
        vector: Tensor,
        transforms: Sequence[UpdateTransform],
        timeline: Timeline,
    ) -> None:
        """vector: φ, followed by D's statistics. Waiting uploads become part of checkpoints."""
        super().__init__(rank_state, vector, transforms, rule=None)
        self._timeline = timeline
        self._parameters = slice(0, rank_state.pair.flat.phi.numel())
        if rank_state.server is not None:
            rank_state.server.kept |= {f"upload_{k}": row for k, row in self._rows.items()}

    def finish(self, into: Tensor) -> None:
        """Merge what has arrived by the end of the round.

        A waiting row is kept as φ_k - φ^k + φ, with the server's φ. So it has the bits that were
        sent if it is merged in its own round.
        """
        assert self._round is not None
        arrivals = self._timeline.round(self._round)
        shares = self._participation.shares_of([k for k in arrivals.in_flight if self.is_valid(k)])
        merged = [k for k in arrivals.arrived if k in shares]
        phi, before = into[self._parameters], into[self._parameters].clone()
        if merged:
            total = torch.zeros_like(into)
            for k in merged:
                total.add_(self._rows[k] * shares[k])
            if len(merged) < len(shares):  # the share of the others stays where it is
                total.add_(into, alpha=1 - sum(shares[k] for k in merged))
            into.copy_(total)
        self._change_on_server()
        for k in shares:
            if k not in merged:
                self._rows[k][self._parameters].add_(phi - before)

"""Recovery from the death of a device rank (`link.survive`): snapshot and rollback.

Every rank keeps snapshots of its state after its last two rounds in memory, with the content of a
checkpoint. When a rank dies, the others may be a round apart: they roll back to the round that all
of them have.
"""

from __future__ import annotations

import logging
import time
from copy import deepcopy
from typing import Any

from fedgan_mpi.errors import AgreedError
from fedgan_mpi.federation.rank import RankState
from fedgan_mpi.training.state import TrainState

logger = logging.getLogger(__name__)


class Recovery:
    """This rank's snapshots."""

    def __init__(self, rank_state: RankState) -> None:
        self.rank_state = rank_state
        self._number = 0
        self._snapshots: dict[int, tuple[int, list[dict[str, Any]], TrainState]] = {}

    def take_snapshot(self, done: int, state: TrainState) -> None:
        """Copy the state after `done` rounds.

        Every rank calls it at the same points, with a verb of all ranks between any two.
        """
        self._number += 1
        states = [owner.state() for owner in self.rank_state.owners]
        self._snapshots[self._number] = deepcopy((done, states, state))
        self._snapshots.pop(self._number - 2, None)

    def rollback(self) -> tuple[int, TrainState]:
        """Continue without the dead ranks from the last snapshot that all survivors have.

        Returns the number of finished rounds and the training state. Collective over the survivors.
        Raises AgreedError if the server is dead or no device is left, and RankLost if another rank
        dies during the call; then call it again.
        """
        rank_state, link = self.rank_state, self.rank_state.link
        began = time.perf_counter()
        link.shrink()
        self._number = link.allreduce_min(self._number)
        ranks = f"rank {', '.join(map(str, link.lost))}"
        if 0 in link.lost:
            raise AgreedError(f"{ranks} has died, and rank 0 is the server: restart with --resume")
        done, states, state = deepcopy(self._snapshots[self._number])
        self._snapshots.pop(self._number + 1, None)
        for owner, saved in zip(rank_state.owners, states, strict=True):
            owner.load_state(saved)
        devices = range(1, rank_state.participation.devices + 1)
        lost = [k for k in devices if link.rank_of(k) is None]
        rank_state.participation.remove(lost, done)
        if len(lost) == len(devices):
            raise AgreedError(f"{ranks} has died, and no device is left: restart with --resume")
        if link.is_server:
            logger.warning(
                "%s has died, with device %s; %d devices continue after round %d, %.3f s later",
                ranks,
                ", ".join(map(str, lost)),
                len(devices) - len(lost),
                done,
                time.perf_counter() - began,
            )
        return done, state

"""`link.survive`: a device's death costs its world that device and the round it died in.

Every rank remembers what it was at the end of its last two rounds, as a checkpoint would, but in
memory: when a rank has died, the others may be a round apart.
"""

from __future__ import annotations

import time
from copy import deepcopy
from typing import Any

from fedgan_mpi.comm.link import AgreedError
from fedgan_mpi.federation.rank import RankState
from fedgan_mpi.training.state import TrainState


class Recovery:
    """What this rank goes back to."""

    def __init__(self, rank_state: RankState) -> None:
        self.rank_state = rank_state
        self._stage = 0
        self._stages: dict[int, tuple[int, list[dict[str, Any]], TrainState]] = {}

    def remember(self, done: int, progress: TrainState) -> None:
        """Copy all that `done` finished rounds left behind. Every rank calls it at the same
        points, with a verb of all ranks between any two."""
        self._stage += 1
        states = [owner.state() for owner in self.rank_state.owners]
        self._stages[self._stage] = deepcopy((done, states, progress))
        self._stages.pop(self._stage - 2, None)

    def rollback(self) -> tuple[int, TrainState]:
        """Collective of the survivors: leave the dead behind, and be what all were when the
        slowest of them last remembered. Gives finished rounds and progress.

        Raises AgreedError where the server is dead or no device is left, and RankLost, to be called
        again, where another rank dies meanwhile.
        """
        rank_state, link = self.rank_state, self.rank_state.link
        began = time.perf_counter()
        link.shrink()
        self._stage = link.allreduce_min(self._stage)
        ranks = f"rank {', '.join(map(str, link.lost))}"
        if 0 in link.lost:
            raise AgreedError(f"{ranks} has died, and rank 0 is the server: go on with --resume")
        done, states, progress = deepcopy(self._stages[self._stage])
        self._stages.pop(self._stage + 1, None)
        for owner, state in zip(rank_state.owners, states, strict=True):
            owner.load_state(state)
        devices = range(1, rank_state.participation.devices + 1)
        gone = [k for k in devices if link.rank_of(k) is None]
        rank_state.participation.leave(gone, done)
        if len(gone) == len(devices):
            raise AgreedError(f"{ranks} has died, and no device is left: go on with --resume")
        if link.is_server:
            names = ", ".join(map(str, gone))
            seconds = time.perf_counter() - began
            print(
                f"{ranks} has died, with device {names}; {len(devices) - len(gone)} devices go on "
                f"after round {done}, {seconds:.3f} s later",
                flush=True,
            )
        return done, progress

"""Traces some rounds with torch's profiler (`record.profile`), into one file per rank."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from fedgan_mpi.config.record import PROFILE_WARM_UP
from fedgan_mpi.federation.rank import RankState
from fedgan_mpi.hardware.ranges import in_torch_profiler
from fedgan_mpi.run.output import optional

logger = logging.getLogger(__name__)


@contextmanager
def profiled(
    rank_state: RankState, run: Path, done: int, log: Callable[[str], None]
) -> Iterator[Callable[[], None]]:
    """Profile rounds inside the block, which calls the yielded function after each round.

    run: the run directory. done: rounds completed before the block. log: called with sentences.
    """
    if rank_state.config.record.profile == 0:
        yield lambda: None
        return
    window = _Window(rank_state, run, done, log)
    try:
        yield window.on_round_end
    finally:
        window.close()


class _Window:
    """The rounds that are profiled. The profiler itself starts one round earlier."""

    def __init__(
        self, rank_state: RankState, run: Path, done: int, log: Callable[[str], None]
    ) -> None:
        self._link, self._log = rank_state.link, log
        self._length, self._rounds = rank_state.config.record.profile, 0
        self._first = done + PROFILE_WARM_UP + 1
        rank = rank_state.link.rank
        self._path = run / "profile" / f"round_{self._first:06d}_rank_{rank:04d}.json.gz"
        activities = [ProfilerActivity.CPU]
        if rank_state.pair.torch_device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._profiler = profile(activities=activities)
        self._ranges = ExitStack()
        self._is_open = False

    def on_round_end(self) -> None:
        self._rounds += 1
        if self._rounds == PROFILE_WARM_UP - 1:
            self._profiler.prepare_trace()
        elif self._rounds == PROFILE_WARM_UP:
            self._ranges.enter_context(in_torch_profiler())
            self._profiler.start_trace()
            self._is_open = True
        elif self._rounds == PROFILE_WARM_UP + self._length:
            self.close()

    def close(self) -> None:
        """Write what has been traced; say so if that is nothing."""
        if self._is_open:
            self._is_open = False
            self._profiler.stop_trace()
            self._ranges.close()
            self._write()
        elif self._rounds <= PROFILE_WARM_UP:
            self._log(f"record.profile: no trace, because the job ends before round {self._first}.")

    def _write(self) -> None:
        unfinished = self._path.with_name(f".{self._path.name}")
        with optional(self._path, lambda line: logger.warning("%s", line)):
            self._path.parent.mkdir(exist_ok=True)
            with self._link.shows_activity():
                self._profiler.export_chrome_trace(str(unfinished))
            os.replace(unfinished, self._path)
        last = self._first + min(self._length, self._rounds - PROFILE_WARM_UP) - 1
        self._log(f"Rounds {self._first} to {last} are traced in {self._path.parent}.")

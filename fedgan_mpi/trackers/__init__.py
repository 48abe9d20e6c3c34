"""Trackers: callbacks that mirror the numbers and samples of a run to other programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedgan_mpi import plugins
from fedgan_mpi.callbacks import Callback
from fedgan_mpi.config import Config
from fedgan_mpi.config.require import require_package
from fedgan_mpi.data import Images
from fedgan_mpi.run.output import print_line

_KEY = "record.trackers"


class Tracker(Callback):
    """A callback that is told about the run's configuration, and when to close its files.

    Its methods are called on the server only.
    """

    config: Mapping[str, Any]
    """Section -> key -> value."""

    def close(self) -> None:
        """Called last, also if the run fails."""


class Guarded(Tracker):
    """Passes everything to a tracker until it raises. Then the run goes on without it."""

    def __init__(self, name: str, tracker: Tracker) -> None:
        self._name, self._tracker = name, tracker
        self._has_failed = False

    def on_run_begin(self, run: Path, done: int) -> None:
        self._call(lambda: self._tracker.on_run_begin(run, done))

    def on_round_end(self, round: int, metrics: Mapping[str, Any]) -> None:
        self._call(lambda: self._tracker.on_round_end(round, metrics))

    def on_score(self, scores: Sequence[Mapping[str, Any]]) -> None:
        self._call(lambda: self._tracker.on_score(scores))

    def on_samples(self, round: int, images: Images) -> None:
        self._call(lambda: self._tracker.on_samples(round, images))

    def close(self) -> None:
        self._call(self._tracker.close)

    def _call(self, act: Callable[[], object]) -> None:
        if self._has_failed:
            return
        try:
            act()
        except Exception as error:  # the libraries raise any type
            self._has_failed = True
            problem = " ".join(str(error).split())
            print_line(
                f"{_KEY}: {self._name} raised {type(error).__name__}: {problem}; "
                "the run goes on without it"
            )


def check_trackers(names: Sequence[str]) -> None:
    """Raise UserError if the package of a built-in tracker, which has its name, is missing."""
    for name in names:
        if plugins.is_built_in(_KEY, name):
            require_package(name, f"{_KEY} has {name!r}")


@contextmanager
def open_trackers(config: Config | None) -> Iterator[list[Guarded]]:
    """Make the configured trackers, and close them after the block. config: None on devices."""
    trackers = []
    if config is not None:
        for name in config.record.all_trackers:
            tracker = plugins.load_class(_KEY, name, Tracker)()
            tracker.config = dataclasses.asdict(config)
            trackers.append(Guarded(name, tracker))
    try:
        yield trackers
    finally:
        for guarded in trackers:
            guarded.close()


def numbers_of(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a line of stats.jsonl, named by group, such as `loss/d_loss`."""
    groups = {
        "seconds": "seconds",
        "wireless": "seconds",
        "bytes": "bytes",
        "images": "data",
        "peak": "memory",
    }
    return {
        f"{groups.get(key.partition('_')[0], 'loss')}/{key}": float(value)
        for key, value in metrics.items()
        if isinstance(value, int | float) and key != "round"
    }

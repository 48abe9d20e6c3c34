"""Local rounds that start before all of their input is there.

A local round is a generator function. It yields once, before it first needs data that has not
arrived. `EarlyStart` runs it up to that point; `finish` runs the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Generic, TypeVar

T = TypeVar("T")
LocalRound = Generator[None, None, T]


class EarlyStart(Generic[T]):
    """At most one local round that has started and waits."""

    def __init__(self) -> None:
        self._waiting: LocalRound[T] | None = None

    @property
    def has_started(self) -> bool:
        return self._waiting is not None

    def start(self, local_round: LocalRound[T]) -> None:
        """Run a local round up to its `yield`."""
        next(local_round)
        self._waiting = local_round

    def finish(self, begin: Callable[[], LocalRound[T]]) -> T:
        """Finish the waiting local round, or run a new one; return its result."""
        local_round, self._waiting = self._waiting or begin(), None
        try:
            while True:
                next(local_round)
        except StopIteration as end:
            result: T = end.value
            return result

    def discard(self) -> None:
        """Forget a waiting local round. A new one gives the same result."""
        self._waiting = None

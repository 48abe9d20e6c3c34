"""Verbs: the methods of the link that exchange data with other ranks.

A verb reports its name to the failure detector's status board, so that the report of a hang names
the verb. It notifies the link's subscribers, such as affinity, which depends on the phase of a
round. A profiler shows it by its name.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

from mpi4py import MPI

from fedgan_mpi.hardware import ranges

Method = TypeVar("Method", bound=Callable[..., Any])

VERBS = [""]
"""Names of all verbs, by their number on the status board; number 0 means no verb."""


class RankLost(Exception):
    """A verb failed because a rank has died; raised only with `link.survive`."""


def verb(method: Method) -> Method:
    """Register a method of `Communicator` that waits for other ranks."""
    number = len(VERBS)
    VERBS.append(method.__name__)

    @functools.wraps(method)
    def registered(self: Any, *arguments: Any, **named: Any) -> Any:
        for subscriber in self.subscribers:
            subscriber(method.__name__)
        board = self.detector.board
        outer = 0 if board is None else board.enter(number)
        try:
            with ranges.named(method.__name__):
                return method(self, *arguments, **named)
        except MPI.Exception as error:
            if self.survives:
                raise RankLost from error
            raise
        finally:
            if board is not None:
                board.leave(outer)

    return cast(Method, registered)

"""Aggregation rules other than the mean: what the server makes of the participants' vectors."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from fedgan_mpi import plugins
from fedgan_mpi.config import AggregationConfig
from fedgan_mpi.config.options import check_options
from fedgan_mpi.errors import UserError

_KEY = "aggregation.rule"


class Rule(ABC):
    """Combines the participants' vectors. Options in `aggregation.options` are keywords of its
    constructor."""

    least_participants = 1
    """Participants without which it is not defined."""

    @abstractmethod
    def combine(self, vectors: Tensor, shares: Tensor) -> Tensor:
        """Return one vector (n,) for the vectors (N, n) of N participants, in device order.

        Called on the server. shares: (N,), sum to 1. The vectors may be overwritten.
        """


class Mean:
    """Weighted mean. The link takes it while vectors arrive, so it has no `combine`."""


class Median(Rule):
    """Median of each parameter; of an even number, the mean of the two in the middle."""

    def combine(self, vectors: Tensor, shares: Tensor) -> Tensor:
        ordered, count = vectors.sort(0).values, len(vectors)
        return (ordered[(count - 1) // 2] + ordered[count // 2]) / 2


class TrimmedMean(Rule):
    """Mean of each parameter without the greatest and the least (Yin et al. 2018,
    arXiv:1803.01498)."""

    def __init__(self, *, trim: int = 1) -> None:
        """trim: values left out at either end."""
        if trim < 0:
            raise UserError(f"aggregation.options.trim is {trim}, but must be at least 0")
        self.trim = trim
        self.least_participants = 2 * trim + 1

    def combine(self, vectors: Tensor, shares: Tensor) -> Tensor:
        ordered = vectors.sort(0).values
        return ordered[self.trim : len(vectors) - self.trim].mean(0)


def make_rule(config: AggregationConfig) -> Rule | None:
    """Return the configured rule; None for the mean.

    Raises UserError for a name that is no rule, or does not take its options.
    """
    if plugins.load(_KEY, config.rule) is Mean:
        check_options(_KEY, config.rule, config.options)
        return None
    code = plugins.load_class(_KEY, config.rule, Rule)  # type: ignore[type-abstract]
    return code(**check_options(_KEY, config.rule, config.options))


def check_rule(config: AggregationConfig, participants: int) -> None:
    """Raise UserError if the rule does not exist, or does not combine this many vectors."""
    rule = make_rule(config)
    if rule is None:
        return
    if participants < rule.least_participants:
        raise UserError(
            f"{_KEY} is {config.rule!r}, which needs at least {rule.least_participants} "
            f"participants in a round, but there are {participants}"
        )
    try:
        combined = rule.combine(
            torch.zeros(participants, 3), torch.full((participants,), 1 / participants)
        )
    except Exception as error:
        problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(f"{_KEY} is {config.rule!r}, but it raised {problem}") from error
    shape = tuple(getattr(combined, "shape", ()))
    if shape != (3,):
        raise UserError(
            f"{_KEY} is {config.rule!r}, but it makes the shape {shape} of vectors of length 3, "
            "and must make one vector, (3,)"
        )

"""Aggregation rules other than the mean: functions of the participants' vectors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from fedgan_mpi.config import AggregationConfig
from fedgan_mpi.config.options import make_part_unless
from fedgan_mpi.config.require import require
from fedgan_mpi.errors import UserError

_KEY = "aggregation.rule"
_PIECE = 2**15  # parameters


class Rule(ABC):
    """Combines the participants' vectors. Options in `aggregation.options` are keywords of its
    constructor."""

    least_participants = 1
    """Participants without which it is not defined."""
    takes_updates = False
    """Whether `combine` gets the updates, vectors minus the server's vector, and returns one."""

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
        return _by_columns(vectors, _median)


class TrimmedMean(Rule):
    """Mean of each parameter without the greatest and the least (Yin et al. 2018,
    arXiv:1803.01498)."""

    def __init__(self, *, trim: int = 1) -> None:
        """trim: values left out at either end."""
        require(trim >= 0, "aggregation.options.trim", trim, "at least 0")
        self.trim = trim
        self.least_participants = 2 * trim + 1

    def combine(self, vectors: Tensor, shares: Tensor) -> Tensor:
        kept = slice(self.trim, len(vectors) - self.trim)
        return _by_columns(vectors, lambda columns: _sorted(columns)[kept].mean(0))


class MultiKrum(Rule):
    """Mean of the vectors that are nearest to their neighbours (Blanchard et al. 2017)."""

    def __init__(self, *, faulty: int = 1, chosen: int | None = None) -> None:
        """faulty: devices that may send anything, f. chosen: vectors in the mean, m; None: all but
        `faulty`."""
        require(faulty >= 0, "aggregation.options.faulty", faulty, "at least 0")
        valid = chosen is None or chosen >= 1
        require(valid, "aggregation.options.chosen", chosen, "at least 1")
        self.faulty, self.chosen = faulty, chosen
        self.least_participants = max(2 * faulty + 3, chosen or 0)

    def combine(self, vectors: Tensor, shares: Tensor) -> Tensor:
        count = len(vectors)
        first, second = torch.triu_indices(count, count, 1)
        squares = vectors.new_zeros(count, count)
        squares[first, second] = squares[second, first] = torch.pdist(vectors).square_()
        # The nearest neighbour is the vector itself, at distance 0.
        scores = squares.sort(1).values[:, : count - self.faulty - 1].sum(1)
        best = scores.argsort(stable=True)[: self.chosen or count - self.faulty]
        weights = vectors.new_zeros(count)
        weights[best] = 1 / len(best)
        return _weighted_sum(weights, vectors)


class Krum(MultiKrum):
    """The vector that is nearest to its neighbours (Blanchard et al. 2017)."""

    def __init__(self, *, faulty: int = 1) -> None:
        """faulty: devices that may send anything, f."""
        super().__init__(faulty=faulty, chosen=1)


class GeometricMedian(Rule):
    """The point with the least weighted sum of distances, by the smoothed Weiszfeld algorithm
    (Pillutla et al. 2022, arXiv:1912.13445)."""

    def __init__(self, *, iterations: int = 8, smoothing: float = 1e-6) -> None:
        """smoothing: smallest distance in a division, ν."""
        valid = iterations >= 1
        require(valid, "aggregation.options.iterations", iterations, "at least 1")
        require(smoothing > 0, "aggregation.options.smoothing", smoothing, "above 0")
        self.iterations, self.smoothing = iterations, smoothing

    def combine(self, vectors: Tensor, shares: Tensor) -> Tensor:
        point = _by_columns(vectors, _median)  # a mean could start arbitrarily far away
        difference = torch.empty_like(point)
        for _ in range(self.iterations):
            distances = torch.stack(
                [torch.sub(row, point, out=difference).norm() for row in vectors]
            )
            weights = shares / distances.clamp(min=self.smoothing)
            point = _weighted_sum(weights / weights.sum(), vectors)
        return point


class NormBound(Rule):
    """Weighted mean of updates, each of at most the median norm (Sun et al. 2019,
    arXiv:1911.07963)."""

    takes_updates = True

    def combine(self, vectors: Tensor, shares: Tensor) -> Tensor:
        norms = torch.stack([row.norm() for row in vectors])
        bound = _median(norms)
        scales = torch.where(norms > bound, bound / norms, torch.ones_like(norms))
        return _weighted_sum(shares * scales, vectors)


def make_rule(config: AggregationConfig) -> Rule | None:
    """Return the configured rule; None for the mean.

    Raises UserError for a name that is no rule, or does not take its options.
    """
    return make_part_unless(Mean, _KEY, config.rule, Rule, config.options)  # type: ignore[type-abstract]


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


def _weighted_sum(weights: Tensor, vectors: Tensor) -> Tensor:
    """Return the sum of weights times rows. A matrix product would copy all vectors."""
    total = torch.zeros_like(vectors[0])
    for weight, row in zip(weights, vectors, strict=True):
        total.addcmul_(row, weight)
    return total


def _median(values: Tensor) -> Tensor:
    """Return the median over the first dimension."""
    ordered, count = _sorted(values), len(values)
    return (ordered[(count - 1) // 2] + ordered[count // 2]) / 2


def _sorted(rows: Tensor) -> Tensor:
    """Return the rows with each column in ascending order.

    Source: merge exchange (Knuth, The Art of Computer Programming 3, algorithm 5.2.2M). Whole rows
    are compared at once, which is many times faster than a sort of each short column.
    """
    rows, count = rows.clone(), len(rows)
    top = p = 1 << max(0, (count - 1).bit_length() - 1)
    while p > 0:
        q, r, distance = top, 0, p
        while distance > 0:
            for i in range(count - distance):
                if i & p == r:
                    least = torch.minimum(rows[i], rows[i + distance])
                    torch.maximum(rows[i], rows[i + distance], out=rows[i + distance])
                    rows[i] = least
            distance, q, r = (q - p, q // 2, p) if q != p else (0, q, r)
        p //= 2
    return rows


def _by_columns(vectors: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a function of each column to pieces that fit into a processor's cache."""
    result = torch.empty_like(vectors[0])
    for columns, piece in zip(vectors.split(_PIECE, 1), result.split(_PIECE), strict=True):
        piece.copy_(function(columns))
    return result

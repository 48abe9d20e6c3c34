"""Detectors of dishonest devices: they lower the shares of devices that stand out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np

from fedgan_mpi.config import AggregationConfig
from fedgan_mpi.config.options import make_part_unless
from fedgan_mpi.config.require import require

_KEY = "aggregation.detector"
_LEAST_WEIGHT = 1e-12
"""With a weight of 0, a round in which only such devices take part would have no average."""


class Detector(ABC):
    """Finds outliers among the participants of a round. Options in `aggregation.detector_options`
    are keywords of its constructor."""

    def __init__(self, *, decay: float = 0.9) -> None:
        """decay: when a device is found for the nth time, its weight is multiplied by decayⁿ."""
        valid = 0 < decay <= 1
        require(valid, "aggregation.detector_options.decay", decay, "above 0 and at most 1")
        self.decay = decay

    @abstractmethod
    def outliers(
        self, t: int, losses: Mapping[int, float], stream: np.random.Generator
    ) -> list[int]:
        """Return the participants of round t that stand out; called on the server.

        losses: participant -> mean loss. stream: random numbers of this round.
        """

    def weights(self, counts: Sequence[int]) -> list[float]:
        """Return the factors of the devices' shares. counts: how often each has been found."""
        return [max(_LEAST_WEIGHT, self.decay ** (n * (n + 1) / 2)) for n in counts]


class NoDetector:
    """All devices keep their shares."""


class LossOutliers(Detector):
    """Isolation forest over the participants' losses (FedDetect: Jin and Li 2023,
    arXiv:2210.10886).

    Half of the participants or more are never outliers.
    """

    def __init__(self, *, decay: float = 0.9, warmup: int = 10) -> None:
        """warmup: rounds before the first search."""
        super().__init__(decay=decay)
        require(warmup >= 0, "aggregation.detector_options.warmup", warmup, "at least 0")
        self.warmup = warmup

    def outliers(
        self, t: int, losses: Mapping[int, float], stream: np.random.Generator
    ) -> list[int]:
        if t < self.warmup or len(losses) < 3:
            return []
        from sklearn.ensemble import IsolationForest

        # The authors' points have a constant coordinate, which weakens every other split.
        points = [(0.0, abs(loss)) for loss in losses.values()]
        seed = int(stream.integers(2**31))
        forest = IsolationForest(max_samples=len(points), random_state=seed)
        predictions = forest.fit_predict(points)  # -1 for outliers
        found = [k for k, prediction in zip(losses, predictions, strict=True) if prediction < 0]
        return found if len(found) < len(losses) // 2 else []


def make_detector(config: AggregationConfig) -> Detector | None:
    """Return the configured detector, or None.

    Raises UserError for a name that is none, or does not take its options.
    """
    name, options = config.detector, config.detector_options
    return make_part_unless(NoDetector, _KEY, name, Detector, options)  # type: ignore[type-abstract]

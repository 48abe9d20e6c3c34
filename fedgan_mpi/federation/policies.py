"""Participation policies: the devices of each round.

Devices are counted from 1, rounds from 0. Every rank computes the same choice from the seed, so
nothing is sent. `importance` also depends on norms of updates, which all ranks have from the
metrics of a round.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedgan_mpi.random_streams import Purpose, numpy_stream
from fedgan_mpi.wireless.cell import Cell

PAST_ROUNDS = 20
"""T_c of proportional_fair: the rounds over which a device's past rates are averaged."""
EVEN_SHARE = 0.1
"""Part of the probabilities of `importance` that is equal for all devices. So every device can be
drawn, and no update is scaled by more than 10 K / N."""


class Federation:
    """The facts about devices that a policy may use."""

    seed: int
    """`run.seed`."""
    devices: int
    """Number of devices, K."""
    count: int
    """Participants per round, N."""
    images: Sequence[int]
    """Number of images of device 1, 2, …."""
    histograms: Sequence[Sequence[int]]
    """How many images of each class device 1, 2, … has; empty without labels."""
    sizes: Sequence[float]
    """Of device 1, 2, …: its share in the average is proportional to it."""
    update_norms: list[float]
    """Of device 1, 2, …: Euclidean norm of its last update, 0 before the first."""
    cell: Cell
    """The simulated radio cell."""

    def uplink_rates(self, t: int) -> NDArray[np.float64]:
        """Return the uplink rate of device 1, 2, … in round t, in bits per second."""
        return self.cell.faded_uplink_rates(self.seed, t, self.count)


class Policy(ABC):
    """Chooses the participants of each round.

    Every rank has its own instance, and all instances must choose alike. Options in
    `participation.options` are keywords of the constructor, after `federation`.
    """

    remembers = False
    """Whether a choice depends on the rounds before. Rounds are then asked for once each, in order
    from 0, also in a run that is resumed."""
    needs_updates = False
    """Whether a choice depends on the norms of the updates of the round before."""

    def __init__(self, federation: Federation) -> None:
        self.federation = federation

    @abstractmethod
    def choose(self, t: int, available: Sequence[int]) -> Sequence[int]:
        """Return the participants of round t, at least one of the available devices."""

    def probabilities(self, t: int, available: Sequence[int]) -> dict[int, float] | None:
        """Return the inclusion probability of each available device, if updates are to be weighted
        by it; None for plain averages."""
        return None

    def count(self, available: Sequence[int]) -> int:
        """Return the number of participants, N, or fewer if fewer devices are available."""
        return min(self.federation.count, len(available))


class All(Policy):
    """Every device."""

    def choose(self, t: int, available: Sequence[int]) -> Sequence[int]:
        return available


class Random(Policy):
    """Drawn uniformly."""

    def choose(self, t: int, available: Sequence[int]) -> Sequence[int]:
        stream = numpy_stream(self.federation.seed, Purpose.PARTICIPATION, t)
        drawn = stream.choice(len(available), self.count(available), replace=False)
        return [available[n] for n in drawn]


class RoundRobin(Policy):
    """Devices in turn."""

    def choose(self, t: int, available: Sequence[int]) -> Sequence[int]:
        count = self.count(available)
        return [available[(t * count + n) % len(available)] for n in range(count)]


class BestChannel(Policy):
    """The devices with the highest uplink rates of the round."""

    def choose(self, t: int, available: Sequence[int]) -> Sequence[int]:
        return _largest(self.federation.uplink_rates(t), available, self.count(available))


class ProportionalFair(Policy):
    """The largest ratios of a device's rate to the average of its past rates.

    The average starts at the device's mean rate. Source: proportional fairness as in Yang et al.
    2020 (arXiv:1908.06287).
    """

    remembers = True

    def __init__(self, federation: Federation) -> None:
        super().__init__(federation)
        self._average: NDArray[np.float64] | None = None

    def choose(self, t: int, available: Sequence[int]) -> Sequence[int]:
        rates = self.federation.uplink_rates(t)
        average = self._average
        if average is None:
            average = self.federation.cell.uplink_rates(self.federation.count)
        chosen = _largest(rates / average, available, self.count(available))
        self._average = (1 - 1 / PAST_ROUNDS) * average
        indices = [device - 1 for device in chosen]
        self._average[indices] += rates[indices] / PAST_ROUNDS
        return chosen


class Balanced(Policy):
    """Devices such that training sees all classes equally often.

    Two steps choose each participant. Of the classes that the remaining devices hold, take the one
    with the fewest images seen. Of the devices that hold it, take the one chosen longest ago. Ties
    go to the lowest index. Source: Guerraoui et al. 2020 (FeGAN), balanced sampling.
    """

    remembers = True

    def __init__(self, federation: Federation) -> None:
        super().__init__(federation)
        self._table = np.array(federation.histograms, np.int64)
        self._seen = np.zeros(self._table.shape[1], np.int64)
        self._waits = list(range(1, federation.devices + 1))  # chosen longest ago is first

    def choose(self, t: int, available: Sequence[int]) -> Sequence[int]:
        table, seen, chosen = self._table, self._seen, list[int]()
        while len(chosen) < self.count(available):
            free = [k for k in self._waits if k in available and k not in chosen]
            held = table[[k - 1 for k in free]].sum(0) > 0
            least = int(np.argmin(np.where(held, seen, np.iinfo(np.int64).max)))
            pick = next(k for k in free if table[k - 1, least] > 0)
            chosen.append(pick)
            seen += table[pick - 1]
            self._waits.remove(pick)
            self._waits.append(pick)
        return chosen


class Importance(Policy):
    """Drawn by the size of the last update and the rate, after Ren, He, Wen, Yu, Huang, Guo 2020.

    Inclusion probabilities are proportional to w_k ‖last update‖ times the rate in the round;
    arXiv:2004.00490 combines the two differently. A device that has not taken part yet gets the
    largest known norm.
    """

    needs_updates = True

    def choose(self, t: int, available: Sequence[int]) -> Sequence[int]:
        """Systematic sampling (Madow 1949)."""
        stream = numpy_stream(self.federation.seed, Purpose.PARTICIPATION, t)
        count = self.count(available)
        order = stream.permutation(len(available))
        ends = np.cumsum(self._probabilities(t, available, count)[order])
        marks = stream.random() + np.arange(count)
        # Rounding may put the last end slightly below `count`.
        drawn = np.minimum(np.searchsorted(ends, marks, side="right"), len(available) - 1)
        return [available[order[n]] for n in drawn]

    def probabilities(self, t: int, available: Sequence[int]) -> dict[int, float]:
        values = self._probabilities(t, available, self.count(available))
        return dict(zip(available, values.tolist(), strict=True))

    def _probabilities(self, t: int, available: Sequence[int], count: int) -> NDArray[np.float64]:
        """Return π_k of each available device; they sum to `count`."""
        federation = self.federation
        norms = np.array(federation.update_norms)
        norms[norms == 0] = norms.max() or 1.0
        importance = np.array(federation.sizes) * norms * federation.uplink_rates(t)
        importance = importance[[device - 1 for device in available]]
        importance /= importance.sum()
        importance = (1 - EVEN_SHARE) * importance + EVEN_SHARE / len(available)
        probabilities = np.zeros(len(available))
        certain = np.zeros(len(available), bool)
        # A probability above 1 becomes 1; the other devices share the rest.
        while True:
            rest = count - certain.sum()
            probabilities[~certain] = rest * importance[~certain] / importance[~certain].sum()
            if not (probabilities[~certain] > 1).any():
                return probabilities
            certain |= probabilities > 1
            probabilities[certain] = 1.0


def _largest(values: NDArray[np.float64], available: Sequence[int], count: int) -> list[int]:
    """The `count` devices with the largest values; ties go to the lowest number."""
    return sorted(available, key=lambda k: (-values[k - 1], k))[:count]

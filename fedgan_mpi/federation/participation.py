"""Participation: the devices of each round and their shares in the average.

Every rank computes the same result from the seed, so nothing is sent. The policy `importance` also
depends on norms of updates, which all ranks have from the metrics of a round.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedgan_mpi.config import ParticipationConfig, WirelessConfig
from fedgan_mpi.errors import UserError
from fedgan_mpi.random_streams import Purpose, numpy_stream
from fedgan_mpi.wireless.cell import Cell

PAST_ROUNDS = 20
"""T_c of proportional_fair: the rounds over which a device's past rates are averaged."""
EVEN_SHARE = 0.1
"""Part of the probabilities of `importance` that is equal for all devices. So every device can be
drawn, and no update is scaled by more than 10 K / N."""


def check_count(config: ParticipationConfig, devices: int) -> None:
    """Raise UserError if participation.count exceeds the number of devices."""
    if (config.count or 0) > devices:
        right = f"at most {devices}, the number of devices"
        raise UserError(f"participation.count is {config.count}, but must be {right}")


class Participation:
    """Participants and shares of every round. Devices are counted from 1, rounds from 0."""

    def __init__(
        self,
        config: ParticipationConfig,
        *,
        images: Sequence[int],
        batch_sizes: Sequence[int],
        shares: Literal["data", "batch", "uniform"],
        seed: int,
        histograms: Sequence[Sequence[int]] = (),
        wireless: WirelessConfig | None = None,
    ) -> None:
        """images, batch_sizes, histograms: of device 1, 2, …. wireless: the cell, None: defaults.

        Raises UserError if more participants are configured than devices exist.
        """
        self._policy, self._seed = config.policy, seed
        self.devices = len(images)
        self.count = config.participants(self.devices)
        check_count(config, self.devices)
        self.cell = Cell(wireless or WirelessConfig(), self.devices)
        self.images, self.histograms = images, histograms
        sizes = {"data": images, "batch": batch_sizes, "uniform": [1] * self.devices}
        self.sizes: Sequence[float] = sizes[shares]
        """Of device 1, 2, …: shares are proportional to it. An algorithm may overwrite it."""
        self.update_norms = [0.0] * self.devices
        """Of device 1, 2, …: Euclidean norm of its last update, 0 before the first. The policy
        `importance` draws the next round by it."""
        self._removed: dict[int, int] = {}
        self._chosen: list[list[int]] = []
        self._policy_rounds = self._stateful_policy()

    def remove(self, devices: Sequence[int], t: int) -> None:
        """Exclude devices from round t on. Every rank calls it at the same point."""
        for device in devices:
            self._removed.setdefault(device - 1, t)
        self._chosen, self._policy_rounds = [], self._stateful_policy()

    def set_update_norms(self, update_norms: Mapping[int, float]) -> None:
        """Store the norms of participants' updates. Every rank calls it at the same point."""
        for device, norm in update_norms.items():
            self.update_norms[device - 1] = norm

    @property
    def is_known_in_advance(self) -> bool:
        """Whether participants do not depend on the updates of the round before."""
        return self._policy != "importance"

    def participants(self, t: int) -> list[int]:
        """Return the devices of round t, in increasing order."""
        available = self._available(t)
        count = min(self.count, len(available))
        if self._policy == "random":
            stream = numpy_stream(self._seed, Purpose.PARTICIPATION, t)
            chosen = [available[n] for n in stream.choice(len(available), count, replace=False)]
        elif self._policy == "round_robin":
            chosen = [available[(t * count + n) % len(available)] for n in range(count)]
        elif self._policy == "best_channel":
            chosen = _largest(self._rates(t), available, count)
        elif self._policy in ("balanced", "proportional_fair"):
            while len(self._chosen) <= t:
                self._chosen.append(next(self._policy_rounds))
            chosen = self._chosen[t]
        elif self._policy == "importance":
            chosen = self._draw(t, available, count)
        else:
            chosen = available
        return sorted(index + 1 for index in chosen)

    def shares(self, t: int) -> dict[int, float]:
        """Return each participant's share in the average of round t; shares sum to 1."""
        participants = self.participants(t)
        total = sum(self.sizes[device - 1] for device in participants)
        return {device: self.sizes[device - 1] / total for device in participants}

    def inverse_probability(self, t: int) -> dict[int, float]:
        """Return the factor of each participant's update before the average with `shares`.

        It is 1, except for `importance`. There the average must be unbiased over draws: with share
        w_k among all devices and inclusion probability π_k, an update has weight w_k / π_k (Horvitz
        and Thompson 1952).
        """
        shares = self.shares(t)
        if self._policy != "importance":
            return dict.fromkeys(shares, 1.0)
        available = self._available(t)
        probabilities = self._probabilities(t, available, len(shares))
        by_device = dict(zip(available, probabilities, strict=True))
        part = sum(self.sizes[k - 1] for k in shares) / sum(self.sizes[k] for k in available)
        return {k: part / float(by_device[k - 1]) for k in shares}

    def _available(self, t: int) -> list[int]:
        """Indices of the devices that are not removed before round t."""
        return [k for k in range(self.devices) if self._removed.get(k, t + 1) > t]

    def _rates(self, t: int) -> NDArray[np.float64]:
        """Uplink rate of each device in round t, in bits per second."""
        return self.cell.faded_uplink_rates(self._seed, t, self.count)

    def _stateful_policy(self) -> Iterator[list[int]]:
        """Yield the participants of each round, for policies that depend on the rounds before."""
        fair = self._policy == "proportional_fair"
        return self._fair_policy() if fair else self._balanced_policy()

    def _fair_policy(self) -> Iterator[list[int]]:
        """Choose the largest ratios of a device's rate to the average of its past rates.

        The average starts at the device's mean rate. Source: proportional fairness as in Yang et
        al. 2020 (arXiv:1908.06287).
        """
        average = self.cell.uplink_rates(self.count)
        for t in itertools.count():
            rates, available = self._rates(t), self._available(t)
            chosen = _largest(rates / average, available, min(self.count, len(available)))
            average = (1 - 1 / PAST_ROUNDS) * average
            average[chosen] += rates[chosen] / PAST_ROUNDS
            yield chosen

    def _probabilities(self, t: int, available: Sequence[int], count: int) -> NDArray[np.float64]:
        """Return the inclusion probability π_k of each available device; they sum to `count`.

        It is proportional to w_k ‖last update‖ times the rate in the round, after Ren, He, Wen, Yu,
        Huang, Guo 2020 (arXiv:2004.00490), whose rule combines the two differently. A device that
        has not taken part yet gets the largest known norm.
        """
        norms = np.array(self.update_norms)
        norms[norms == 0] = norms.max() or 1.0
        importance = (np.array(self.sizes) * norms * self._rates(t))[list(available)]
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

    def _draw(self, t: int, available: Sequence[int], count: int) -> list[int]:
        """Draw `count` different devices with their probabilities (systematic sampling, Madow
        1949)."""
        stream = numpy_stream(self._seed, Purpose.PARTICIPATION, t)
        order = stream.permutation(len(available))
        ends = np.cumsum(self._probabilities(t, available, count)[order])
        marks = stream.random() + np.arange(count)
        # Rounding may put the last end slightly below `count`.
        drawn = np.minimum(np.searchsorted(ends, marks, side="right"), len(available) - 1)
        return [available[order[n]] for n in drawn]

    def _balanced_policy(self) -> Iterator[list[int]]:
        """Choose devices such that training sees all classes equally often.

        Repeat until the round is full: take the class with the fewest images seen, of those that a
        remaining device holds; of these devices, take the one that was chosen longest ago. Ties go
        to the lowest index. Source: Guerraoui et al. 2020 (FeGAN), balanced sampling.
        """
        table = np.array(self.histograms, np.int64)
        seen = np.zeros(table.shape[1], np.int64)
        waits = list(range(len(table)))  # the device chosen longest ago is first
        for t in itertools.count():
            available = self._available(t)
            chosen: list[int] = []
            while len(chosen) < min(self.count, len(available)):
                free = [device for device in waits if device in available and device not in chosen]
                held = table[free].sum(0) > 0
                least = int(np.argmin(np.where(held, seen, np.iinfo(np.int64).max)))
                pick = next(device for device in free if table[device, least] > 0)
                chosen.append(pick)
                seen += table[pick]
                waits.remove(pick)
                waits.append(pick)
            yield chosen


def _largest(values: NDArray[np.float64], available: Sequence[int], count: int) -> list[int]:
    """The `count` indices with the largest values; ties go to the lowest index."""
    return sorted(available, key=lambda k: (-values[k], k))[:count]

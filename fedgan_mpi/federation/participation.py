"""Who takes part in round t, and with which share. Every rank computes the same from the same seed,
and, for `importance`, from norms that came through the link, so no message is sent for it."""

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
"""Rounds over which proportional_fair averages what a device has had, T_c."""
EVEN_SHARE = 0.1
"""Part of importance's chances that all have alike: nobody is shut out, and no update is lengthened
by more than 10 K / N."""


def check_count(config: ParticipationConfig, devices: int) -> None:
    """Raises UserError where more participants are asked for than there are devices."""
    if (config.count or 0) > devices:
        right = f"at most {devices}, the number of devices"
        raise UserError(f"participation.count is {config.count}, but must be {right}")


class Participation:
    """Participants and shares of every round. Devices count from 1, rounds from 0."""

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
        """images, batch_sizes, histograms: of device 1, 2, …; wireless: the cell, None for its
        defaults. Raises UserError where more are asked for than there are."""
        self._policy, self._seed = config.policy, seed
        self.devices = len(images)
        self.count = config.participants(self.devices)
        check_count(config, self.devices)
        self.cell = Cell(wireless or WirelessConfig(), self.devices)
        self.images, self.histograms = images, histograms
        sizes = {"data": images, "batch": batch_sizes, "uniform": [1] * self.devices}
        self.sizes: Sequence[float] = sizes[shares]
        """Of device 1, 2, …: what shares are proportional to. An algorithm may set its own."""
        self.update_norms = [0.0] * self.devices
        """Of device 1, 2, …: the Euclidean norm of its last update, 0 before the first. With it
        `importance` draws the round that comes next."""
        self._left: dict[int, int] = {}
        self._picked: list[list[int]] = []
        self._picks = self._pick()

    def leave(self, devices: Sequence[int], t: int) -> None:
        """From round t on these devices are not there; at the same point on every rank."""
        for device in devices:
            self._left.setdefault(device - 1, t)
        self._picked, self._picks = [], self._pick()

    def learn(self, update_norms: Mapping[int, float]) -> None:
        """Note how far participants' updates went; at the same point on every rank."""
        for device, norm in update_norms.items():
            self.update_norms[device - 1] = norm

    @property
    def is_known_ahead(self) -> bool:
        """Whether a round's participants are known before the last one's updates are."""
        return self._policy != "importance"

    def participants(self, t: int) -> list[int]:
        """The devices of round t, in increasing order."""
        there = self._there(t)
        count = min(self.count, len(there))
        if self._policy == "random":
            stream = numpy_stream(self._seed, Purpose.PARTICIPATION, t)
            chosen = [there[n] for n in stream.choice(len(there), count, replace=False)]
        elif self._policy == "round_robin":
            chosen = [there[(t * count + n) % len(there)] for n in range(count)]
        elif self._policy == "best_channel":
            chosen = _largest(self._rates(t), there, count)
        elif self._policy in ("balanced", "proportional_fair"):
            while len(self._picked) <= t:
                self._picked.append(next(self._picks))
            chosen = self._picked[t]
        elif self._policy == "importance":
            chosen = self._draw(t, there, count)
        else:
            chosen = there
        return sorted(index + 1 for index in chosen)

    def shares(self, t: int) -> dict[int, float]:
        """Each participant's share in the average of round t; they sum to 1."""
        participants = self.participants(t)
        total = sum(self.sizes[device - 1] for device in participants)
        return {device: self.sizes[device - 1] / total for device in participants}

    def inverse_probability(self, t: int) -> dict[int, float]:
        """By which factor each participant's update is lengthened before the average with `shares`:
        1, except for `importance`, whose average is thereby that of all devices in the mean over
        draws. With share w_k among all and chance π_k, the update must weigh w_k / π_k (Horvitz
        and Thompson 1952).
        """
        shares = self.shares(t)
        if self._policy != "importance":
            return dict.fromkeys(shares, 1.0)
        there = self._there(t)
        chances = dict(zip(there, self._chances(t, there, len(shares)), strict=True))
        part = sum(self.sizes[k - 1] for k in shares) / sum(self.sizes[k] for k in there)
        return {k: part / float(chances[k - 1]) for k in shares}

    def _there(self, t: int) -> list[int]:
        """Indices of devices that have not left before round t."""
        return [k for k in range(self.devices) if self._left.get(k, t + 1) > t]

    def _rates(self, t: int) -> NDArray[np.float64]:
        """Of each device in round t, bits a second."""
        return self.cell.drawn_rates(self._seed, t, self.count)

    def _pick(self) -> Iterator[list[int]]:
        """Round after round, for policies that depend on the rounds before."""
        fair = self._policy == "proportional_fair"
        return self._fair_picks() if fair else self._balanced_picks()

    def _fair_picks(self) -> Iterator[list[int]]:
        """The largest rates beside the mean of what a device has had; that begins at the device's
        own mean rate. Source: proportional fairness as in Yang et al. 2020 (arXiv:1908.06287)."""
        had = self.cell.up_rates(self.count)
        for t in itertools.count():
            rates, there = self._rates(t), self._there(t)
            chosen = _largest(rates / had, there, min(self.count, len(there)))
            had = (1 - 1 / PAST_ROUNDS) * had
            had[chosen] += rates[chosen] / PAST_ROUNDS
            yield chosen

    def _chances(self, t: int, there: Sequence[int], count: int) -> NDArray[np.float64]:
        """π_k of each device there to be one of `count`; they sum to `count`.

        Proportional to the norm of the device's part in the average, w_k ‖its last update‖, times
        its rate in the round, after Ren, He, Wen, Yu, Huang, Guo 2020 (arXiv:2004.00490), who
        trade the two by another rule. Who has not taken part yet counts with the longest update
        known.
        """
        norms = np.array(self.update_norms)
        norms[norms == 0] = norms.max() or 1.0
        importance = (np.array(self.sizes) * norms * self._rates(t))[list(there)]
        importance /= importance.sum()
        importance = (1 - EVEN_SHARE) * importance + EVEN_SHARE / len(there)
        chances = np.zeros(len(there))
        certain = np.zeros(len(there), bool)
        # Nobody takes part twice: whoever is above 1 is certain, and the others share the rest.
        while True:
            rest = count - certain.sum()
            chances[~certain] = rest * importance[~certain] / importance[~certain].sum()
            if not (chances[~certain] > 1).any():
                return chances
            certain |= chances > 1
            chances[certain] = 1.0

    def _draw(self, t: int, there: Sequence[int], count: int) -> list[int]:
        """`count` different devices, each with its chance: one ruler of unit steps laid over the
        chances in a random order (systematic sampling, Madow 1949)."""
        stream = numpy_stream(self._seed, Purpose.PARTICIPATION, t)
        order = stream.permutation(len(there))
        ends = np.cumsum(self._chances(t, there, count)[order])
        marks = stream.random() + np.arange(count)
        # Rounding may leave the last end a hair short of `count`.
        hit = np.minimum(np.searchsorted(ends, marks, side="right"), len(there) - 1)
        return [there[order[n]] for n in hit]

    def _balanced_picks(self) -> Iterator[list[int]]:
        """Round after round, indices of `count` devices such that classes are seen equally often.

        Again and again: of the classes that a device not yet in the round holds, take the one of
        which the fewest images have been seen, and of those devices the one that has waited
        longest; ties go to the lowest index. Source: Guerraoui et al. 2020 (FeGAN), balanced
        sampling.
        """
        table = np.array(self.histograms, np.int64)
        seen = np.zeros(table.shape[1], np.int64)
        waits = list(range(len(table)))  # who took part longest ago stands first
        for t in itertools.count():
            there = self._there(t)
            chosen: list[int] = []
            while len(chosen) < min(self.count, len(there)):
                free = [device for device in waits if device in there and device not in chosen]
                held = table[free].sum(0) > 0
                least = int(np.argmin(np.where(held, seen, np.iinfo(np.int64).max)))
                pick = next(device for device in free if table[device, least] > 0)
                chosen.append(pick)
                seen += table[pick]
                waits.remove(pick)
                waits.append(pick)
            yield chosen


def _largest(values: NDArray[np.float64], there: Sequence[int], count: int) -> list[int]:
    """The `count` of these indices with the largest values; ties go to the lowest index."""
    return sorted(there, key=lambda k: (-values[k], k))[:count]

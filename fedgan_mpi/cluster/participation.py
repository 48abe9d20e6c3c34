"""Who takes part in round t, and with which share. Every rank computes the same, so no message is
sent for it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from fedgan_mpi.config import ParticipationConfig
from fedgan_mpi.errors import UserError
from fedgan_mpi.streams import Purpose, numpy_stream


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
    ) -> None:
        """images, batch_sizes, histograms: of device 1, 2, …. Raises UserError where more are asked
        for than there are."""
        self._policy, self._seed = config.policy, seed
        self.devices = len(images)
        self.count = self.devices if config.count is None else config.count
        check_count(config, self.devices)
        self.images, self.histograms = images, histograms
        sizes = {"data": images, "batch": batch_sizes, "uniform": [1] * self.devices}
        self.sizes: Sequence[float] = sizes[shares]
        """Of device 1, 2, …: what shares are proportional to. An algorithm may set its own."""
        self._left: dict[int, int] = {}
        self._balanced: list[list[int]] = []
        self._picks = self._balanced_picks()

    def leave(self, devices: Sequence[int], t: int) -> None:
        """From round t on these devices are not there; at the same point on every rank."""
        for device in devices:
            self._left.setdefault(device - 1, t)
        self._balanced, self._picks = [], self._balanced_picks()

    def participants(self, t: int) -> list[int]:
        """The devices of round t, in increasing order."""
        there = self._there(t)
        count = min(self.count, len(there))
        if self._policy == "random":
            stream = numpy_stream(self._seed, Purpose.PARTICIPATION, t)
            chosen = [there[n] for n in stream.choice(len(there), count, replace=False)]
        elif self._policy == "round_robin":
            chosen = [there[(t * count + n) % len(there)] for n in range(count)]
        elif self._policy == "balanced":
            while len(self._balanced) <= t:
                self._balanced.append(next(self._picks))
            chosen = self._balanced[t]
        else:
            chosen = there
        return sorted(index + 1 for index in chosen)

    def shares(self, t: int) -> dict[int, float]:
        """Each participant's share in the average of round t; they sum to 1."""
        participants = self.participants(t)
        total = sum(self.sizes[device - 1] for device in participants)
        return {device: self.sizes[device - 1] / total for device in participants}

    def _there(self, t: int) -> list[int]:
        """Indices of devices that have not left before round t."""
        return [k for k in range(self.devices) if self._left.get(k, t + 1) > t]

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

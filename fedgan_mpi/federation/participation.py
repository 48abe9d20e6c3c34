"""Participation: the devices of each round and their shares in the average."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from fedgan_mpi import plugins
from fedgan_mpi.config import ParticipationConfig, WirelessConfig
from fedgan_mpi.config.options import check_options
from fedgan_mpi.errors import UserError
from fedgan_mpi.federation.policies import Federation, Policy
from fedgan_mpi.wireless.cell import Cell

_KEY = "participation.policy"


def check_count(config: ParticipationConfig, devices: int) -> None:
    """Raise UserError if participation.count exceeds the number of devices."""
    if (config.count or 0) > devices:
        right = f"at most {devices}, the number of devices"
        raise UserError(f"participation.count is {config.count}, but must be {right}")


class Participation(Federation):
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

        Raises UserError if more participants are configured than devices exist, or for a policy
        outside of the program that does not take its options.
        """
        self.seed = seed
        self.devices = len(images)
        self.count = config.participants(self.devices)
        check_count(config, self.devices)
        self.cell = Cell(wireless or WirelessConfig(), self.devices)
        self.images, self.histograms = images, histograms
        sizes = {"data": images, "batch": batch_sizes, "uniform": [1] * self.devices}
        self.sizes = sizes[shares]  # an algorithm may overwrite it
        self.weights = [1.0] * self.devices
        """Factors of the sizes, which a detector of dishonest devices lowers."""
        self.update_norms = [0.0] * self.devices
        self._name, self._options = config.policy, self._check_options(config)
        self.busy: Callable[[int], Sequence[int]] = lambda t: ()
        """t -> devices that still work on an earlier round."""
        self._removed: dict[int, int] = {}
        self._policy, self._remembered = self._start_policy(), list[list[int]]()

    def remove(self, devices: Sequence[int], t: int) -> None:
        """Exclude devices from round t on. Every rank calls it at the same point."""
        for device in devices:
            self._removed.setdefault(device, t)
        self._policy, self._remembered = self._start_policy(), []

    def set_update_norms(self, update_norms: Mapping[int, float]) -> None:
        """Store the norms of participants' updates. Every rank calls it at the same point."""
        for device, norm in update_norms.items():
            self.update_norms[device - 1] = norm

    @property
    def is_known_in_advance(self) -> bool:
        """Whether participants do not depend on the updates of the round before."""
        return not self._policy.needs_updates

    def participants(self, t: int) -> list[int]:
        """Return the devices of round t, in increasing order.

        Raises UserError if a policy outside of the program chooses none, or others than exist.
        """
        if not self._policy.remembers:
            return self._choose(t)
        while len(self._remembered) <= t:
            self._remembered.append(self._choose(len(self._remembered)))
        return self._remembered[t]

    def shares(self, t: int) -> dict[int, float]:
        """Return each participant's share in the average of round t; shares sum to 1."""
        return self.shares_of(self.participants(t))

    def shares_of(self, devices: Sequence[int]) -> dict[int, float]:
        """Return each of these devices' share among them; shares sum to 1."""
        sizes = {device: self.sizes[device - 1] * self.weights[device - 1] for device in devices}
        total = sum(sizes.values())
        return {device: size / total for device, size in sizes.items()}

    def available(self, t: int) -> list[int]:
        """Return the devices that are neither removed before round t nor busy in it."""
        busy = self.busy(t)
        everyone = range(1, self.devices + 1)
        return [k for k in everyone if self._removed.get(k, t + 1) > t and k not in busy]

    def part(self, t: int) -> float:
        """Return the sum of the participants' shares among all devices."""
        present, available = self.participants(t), self.available(t)
        return sum(self.sizes[k - 1] for k in present) / sum(self.sizes[k - 1] for k in available)

    def inverse_probability(self, t: int) -> dict[int, float]:
        """Return the factor of each participant's update before the average with `shares`.

        It is 1, except for policies with inclusion probabilities π_k. There the average must be
        unbiased over draws: with share w_k among all devices, an update has weight w_k / π_k
        (Horvitz and Thompson 1952).
        """
        shares, available, part = self.shares(t), self.available(t), self.part(t)
        probabilities = self._policy.probabilities(t, available)
        if probabilities is None:
            return dict.fromkeys(shares, 1.0)
        return {k: part / probabilities[k] for k in shares}

    def _choose(self, t: int) -> list[int]:
        available = self.available(t)
        chosen = sorted(int(device) for device in self._policy.choose(t, available))
        if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(available):
            raise UserError(
                f"{_KEY} is {self._name!r}, which chose the devices {chosen} in round {t + 1}, but "
                f"must choose one or more different ones of {available}"
            )
        return chosen

    def _start_policy(self) -> Policy:
        return _policy_class(self._name)(self, **self._options)

    @staticmethod
    def _check_options(config: ParticipationConfig) -> Mapping[str, Any]:
        _policy_class(config.policy)
        return check_options(_KEY, config.policy, config.options, given=("federation",))


def _policy_class(name: str) -> type[Policy]:
    return plugins.load_class(_KEY, name, Policy)  # type: ignore[type-abstract]

"""Options of the choice of participants."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from fedgan_mpi.config.options import check_named
from fedgan_mpi.config.require import require

CHANNEL_POLICIES = ("best_channel", "proportional_fair", "importance")
"""Participation policies that depend on the simulated radio cell."""


@dataclass(frozen=True, kw_only=True)
class ParticipationConfig:
    """Participants of a round."""

    policy: str = "all"
    """Choice of the N participants of a round, also an installed one or an import string. all:
    every device. random: drawn uniformly. round_robin: in turn. balanced: so that all classes are
    seen equally often (FeGAN); needs labelled shards. best_channel: highest rates in the round.
    proportional_fair: highest ratio of rate to the device's past average. importance: drawn by the
    size of the last update and the rate. The last three use the cell of the section wireless, also
    if wireless.on is false."""
    count: int | None = None
    """Participants per round, N. None: set by fraction; all devices for the policy all."""
    fraction: float | None = None
    """N as a fraction of the devices, rounded to the nearest integer, at least 1. None: set by
    count."""

    options: dict[str, Any] = field(default_factory=dict, hash=False)
    """Own options of a policy that is not built in: keywords of its constructor."""

    def participants(self, devices: int) -> int:
        """Return N for a number of devices."""
        if self.fraction is not None:
            return max(1, math.floor(self.fraction * devices + 0.5))
        return devices if self.count is None else self.count

    def __post_init__(self) -> None:
        check_named("participation.policy", self.policy, self.options)
        for key in ("count", "fraction"):
            if self.policy == "all":
                right = "left out when participation.policy is 'all'"
                value = getattr(self, key)
                require(value is None, f"participation.{key}", value, right)
        if self.fraction is not None:
            valid = 0 < self.fraction <= 1
            require(valid, "participation.fraction", self.fraction, "above 0 and at most 1")
            right = "left out when participation.fraction is given"
            require(self.count is None, "participation.count", self.count, right)
        elif self.policy != "all":
            right = f"at least 1 when participation.policy is {self.policy!r}"
            require((self.count or 0) >= 1, "participation.count", self.count, right)

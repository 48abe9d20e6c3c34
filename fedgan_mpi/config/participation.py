"""Who joins a round."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from fedgan_mpi.config.require import require

CHANNEL_POLICIES = ("best_channel", "proportional_fair", "importance")
"""Of participation: those that hear the cell."""


@dataclass(frozen=True, kw_only=True)
class ParticipationConfig:
    """Who joins a round."""

    policy: Literal[
        "all",
        "random",
        "round_robin",
        "balanced",
        "best_channel",
        "proportional_fair",
        "importance",
    ] = "all"
    """Who takes part in a round: everyone, N drawn anew, N in turn, N so that all classes are seen
    equally often (balanced: FeGAN; for labelled shards), the N best radio channels of the round,
    the N best beside what they have had (proportional_fair), or N drawn by update and channel
    (importance). The last three hear the cell of the section wireless, clock or not."""
    count: int | None = None
    """Participants of a round, N; it or fraction is needed unless everyone takes part."""
    fraction: float | None = None
    """The same as a share of the devices, rounded to the nearest number, at least 1."""

    def participants(self, devices: int) -> int:
        """N, of so many devices."""
        if self.fraction is not None:
            return max(1, math.floor(self.fraction * devices + 0.5))
        return devices if self.count is None else self.count

    def __post_init__(self) -> None:
        for key in ("count", "fraction"):
            if self.policy == "all":
                right = "left out when participation.policy is 'all'"
                value = getattr(self, key)
                require(value is None, f"participation.{key}", value, right)
        if self.fraction is not None:
            fits = 0 < self.fraction <= 1
            require(fits, "participation.fraction", self.fraction, "above 0 and at most 1")
            right = "left out when participation.fraction is given"
            require(self.count is None, "participation.count", self.count, right)
        elif self.policy != "all":
            right = f"at least 1 when participation.policy is {self.policy!r}"
            require((self.count or 0) >= 1, "participation.count", self.count, right)

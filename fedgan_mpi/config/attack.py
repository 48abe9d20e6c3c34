"""Options of simulated attacks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from fedgan_mpi.config.require import require


@dataclass(frozen=True, kw_only=True)
class AttackConfig:
    """Devices that do not send what they have trained, to study aggregation rules."""

    devices: tuple[int, ...] = ()
    """Attacking devices, counted from 1. Empty: none."""
    kind: Literal["sign_flip", "noise", "stale", "label_free", "backdoor"] = "sign_flip"
    """Update that they send. sign_flip: the negative one. noise: plus normal noise. stale: none, as
    a free rider sends. label_free: random parameters. backdoor: the honest one, of training images
    with a white square in the lower right corner."""
    from_round: int = 1
    """First round of the attack, counted from 1."""
    strength: float = 1.0
    """sign_flip: factor of the update. noise: standard deviation. label_free: standard deviation,
    as a multiple of the root mean square of the received parameters. backdoor: opacity of the
    square, at most 1."""
    patch: int = 4
    """backdoor: side of the square, in pixels."""

    def __post_init__(self) -> None:
        devices = list(self.devices)
        valid = len(set(devices)) == len(devices) and all(k >= 1 for k in devices)
        require(valid, "attack.devices", devices, "a list of different devices, counted from 1")
        require(self.from_round >= 1, "attack.from_round", self.from_round, "at least 1")
        valid = 0 < self.strength < math.inf
        require(valid, "attack.strength", self.strength, "above 0 and finite")
        valid = self.kind != "backdoor" or self.strength <= 1
        right = "at most 1 when attack.kind is 'backdoor'"
        require(valid, "attack.strength", self.strength, right)
        valid = self.kind != "stale" or self.strength == 1
        right = "left out when attack.kind is 'stale'"
        require(valid, "attack.strength", self.strength, right)
        require(self.patch >= 1, "attack.patch", self.patch, "at least 1")
        valid = self.kind == "backdoor" or self.patch == 4
        right = "left out unless attack.kind is 'backdoor'"
        require(valid, "attack.patch", self.patch, right)
        for key in ("kind", "from_round", "strength", "patch"):
            value = getattr(self, key)
            valid = bool(devices) or value == type(self).__dataclass_fields__[key].default
            require(valid, f"attack.{key}", value, "left out when attack.devices is empty")

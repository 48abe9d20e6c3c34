"""The method and its open choices."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

from fedgan_mpi.config.algorithm_traits import KNOWN_BY, TRAITS, AlgorithmTraits
from fedgan_mpi.config.require import require


@dataclass(frozen=True, kw_only=True)
class AlgorithmConfig:
    """The method and its open choices."""

    name: Literal["ren", "fedgan", "mdgan", "uagan", "dp_fedavg_gan", "fegan", "centralized"] = (
        "ren"
    )
    """How the GAN is trained: ren (devices train D, the server G), fedgan (devices train both),
    mdgan (the server's G learns from D's that move between devices), uagan (… from all devices' D's
    as one), dp_fedavg_gan (ren with clipped updates and noise), fegan (fedgan with shares by label
    histogram), centralized (all shards in one process, the reference)."""
    schedule: Literal["serial", "parallel"] = "serial"
    """ren. serial: G trains after the devices, against the new D. parallel: meanwhile, against the
    D they started from."""
    shares: Literal["data", "batch", "uniform"] | None = None
    """A participant's share in the average, or of the data in uagan's mixture: by images held, by
    batch size, or equal. None: data; uniform for fl_gan, mdgan and dp_fedavg_gan; fegan has its
    own."""
    moments: Literal["persistent", "reset", "averaged"] = "persistent"
    """A device's optimizer moments: its own for ever, zero in every round, or averaged like the
    networks."""
    batchnorm: Literal["average", "local", "recalibrate"] | None = None
    """BatchNorm's running statistics: averaged with the networks, never sent, or averaged with the
    variance between devices. None: average; local for dp_fedavg_gan."""
    preset: Literal["fl_gan", "ifl"] | None = None
    """fedgan's fl_gan: local steps for whole epochs, plain average (Hardy et al. 2019). fegan's
    ifl: shares by the distance between a device's real and generated images (Li et al. 2022)."""
    local_update: Literal["simultaneous", "alternating"] = "simultaneous"
    """fedgan, fegan: both networks step from the same point, or G against the D just moved."""
    epochs: int = 1
    """E, passes over a shard: between averages for fl_gan, between swaps for mdgan (0: no swap)."""
    fake_batches: int = 2
    """mdgan: batches of fakes per round, k; each participant gets two of them."""
    mode: Literal["mean", "max", "softmax", "odds"] = "odds"
    """uagan: how D's act as one: mean of the losses, the D most easily fooled (F2U), softly so
    (F2A), or their odds added up (UA-GAN)."""
    sharpness: float = 1.0
    """uagan, softmax: λ of the weights softmax(λ D_k). 0: mean."""
    clip: float = 0.1
    """dp_fedavg_gan: longest update of a device, C; 0: none is clipped."""
    noise: float = 0.01
    """dp_fedavg_gan: noise multiplier z; the sum of updates gets N(0, (z C)²)."""
    epsilon_budget: float | None = None
    """dp_fedavg_gan: greatest ε that the whole run may spend. None: no limit."""
    delta: float = 1e-5
    """dp_fedavg_gan: the δ that ε is told for."""
    kl_sign: Literal[-1, 1] = -1
    """fegan: a device whose classes differ from all devices' gets a smaller share (-1), or a
    greater one, as in its authors' code (1)."""

    @property
    def traits(self) -> AlgorithmTraits:
        """What the chosen algorithm is."""
        return TRAITS[self.name]

    @property
    def statistics_rule(self) -> Literal["average", "local", "recalibrate"]:
        """`batchnorm`, with None resolved."""
        return self.batchnorm or ("local" if self.traits.is_private else "average")

    @property
    def share_rule(self) -> Literal["data", "batch", "uniform"]:
        """`shares`, with None resolved."""
        return self.shares or ("uniform" if self.preset == "fl_gan" else self.traits.shares)

    def __post_init__(self) -> None:
        traits = self.traits
        default = {option.name: option.default for option in fields(self)}
        for key, names in KNOWN_BY.items():
            right = f"left out for {self.name}; it belongs to {', '.join(names)}"
            value = getattr(self, key)
            fits = self.name in names or value == default[key]
            require(fits, f"algorithm.{key}", value, right)
        right = f"{traits.preset!r} or left out for {self.name}"
        require(self.preset in {None, traits.preset}, "algorithm.preset", self.preset, right)
        if self.preset == "fl_gan":
            right = "'uniform' or left out for fl_gan, a plain average"
            fits = self.share_rule == "uniform"
            require(fits, "algorithm.shares", self.shares, right)
            fits = self.batchnorm != "recalibrate"
            right = "'average' or 'local' for fl_gan, whose devices take unequally many steps"
            require(fits, "algorithm.batchnorm", self.batchnorm, right)
        fits = traits.averages_networks or self.moments != "averaged"
        right = f"'persistent' or 'reset' for {self.name}"
        require(fits, "algorithm.moments", self.moments, right)
        first = 1 if self.preset == "fl_gan" else 0
        require(self.epochs >= first, "algorithm.epochs", self.epochs, f"at least {first}")
        fits = self.epochs == 1 or self.preset == "fl_gan" or traits.preset != "fl_gan"
        right = "left out for fedgan without algorithm.preset 'fl_gan'"
        require(fits, "algorithm.epochs", self.epochs, right)
        require(self.fake_batches >= 1, "algorithm.fake_batches", self.fake_batches, "at least 1")
        fits = 0 <= self.sharpness < math.inf
        require(fits, "algorithm.sharpness", self.sharpness, "at least 0 and finite")
        fits = self.mode == "softmax" or self.sharpness == 1
        right = "left out unless algorithm.mode is 'softmax'"
        require(fits, "algorithm.sharpness", self.sharpness, right)
        self._check_privacy()

    def _check_privacy(self) -> None:
        fits = 0 <= self.clip < math.inf
        require(fits, "algorithm.clip", self.clip, "at least 0 and finite")
        require(0 <= self.noise < math.inf, "algorithm.noise", self.noise, "at least 0 and finite")
        require(0 < self.delta < 1, "algorithm.delta", self.delta, "between 0 and 1")
        budget = self.epsilon_budget
        require(budget is None or budget > 0, "algorithm.epsilon_budget", budget, "above 0")
        if self.traits.is_private:
            fits = self.noise == 0 or self.clip > 0
            right = "above 0 when algorithm.noise is: noise is measured by it"
            require(fits, "algorithm.clip", self.clip, right)
            rule = self.statistics_rule
            fits = rule == "local" or (rule == "average" and self.noise == 0)
            right = "'local' for dp_fedavg_gan: running statistics would leave without noise"
            require(fits, "algorithm.batchnorm", self.batchnorm, right)

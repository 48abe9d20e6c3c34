"""Options of the algorithm."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from fedgan_mpi import plugins
from fedgan_mpi.config.algorithm_traits import KNOWN_BY, TRAITS, AlgorithmTraits
from fedgan_mpi.config.require import require
from fedgan_mpi.errors import UserError


@dataclass(frozen=True, kw_only=True)
class AlgorithmConfig:
    """The algorithm and its own options."""

    name: str = "ren"
    """Training algorithm, also an installed one or an import string. ren: devices train D, the
    server averages D and trains G. fedgan: devices train both networks, the server averages both.
    mdgan: devices keep their D and swap them after whole epochs; the server trains G with their
    gradients. uagan: devices keep their D; the server combines their answers and trains G.
    ensemble: devices keep their D and upload it; the server trains G against the mixture of all.
    dp_fedavg_gan: ren with clipped updates and noise. fegan: fedgan with shares by label histogram.
    fess_gda: fedgan with a smoothed step on the server. centralized: one process trains on all
    shards, as a reference."""
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    """Own options of an algorithm that is not built in: keywords of its constructor."""
    schedule: Literal["serial", "parallel"] = "serial"
    """ren, ensemble: order of a round. serial: the server trains G after the devices, against the
    new D. parallel: at the same time as the devices, against the D of the round before."""
    staleness: int = 0
    """ren: s, the number of rounds by which a device's upload may be late in the simulated cell. A
    round then ends without waiting for it. 0: every round waits for all of its devices. Above 0
    needs wireless.on."""
    shares: Literal["data", "batch", "uniform"] | None = None
    """ren, fedgan, fess_gda, uagan, ensemble: weight of a device in the average or in the mixture.
    data: number of images. batch: batch size. uniform: equal. None: uniform for the preset fl_gan,
    else data."""
    moments: Literal["persistent", "reset", "averaged"] = "persistent"
    """Optimizer moments of a device. persistent: kept from round to round. reset: zero at the start
    of each round. averaged: averaged with the networks."""
    batchnorm: Literal["average", "local", "recalibrate"] | None = None
    """ren, fedgan, dp_fedavg_gan, fegan, fess_gda: running statistics of BatchNorm. average:
    averaged with the networks. local: never sent. recalibrate: averaged, plus the variance between
    the devices' means. None: local for dp_fedavg_gan, else average."""
    preset: Literal["fl_gan", "ifl", "ua_gan"] | None = None
    """fedgan: fl_gan trains for whole epochs per round and averages uniformly (Hardy et al. 2019).
    fegan: ifl computes shares from the distance between a device's real and generated images (Li et
    al. 2022). uagan: ua_gan uses the authors' loss of D. It is 0.1 times the adversarial loss plus
    a zero_centered penalty of weight 10. None: neither."""
    local_update: Literal["simultaneous", "alternating"] = "simultaneous"
    """fedgan, fegan: order of a local step. simultaneous: D and G step from the same parameters.
    alternating: G steps against the updated D."""
    proximal: float = 0.0
    """ren, dp_fedavg_gan, fedgan, fegan, fess_gda: weight μ of FedProx's proximal term in each
    local step, which pulls towards the received parameters (arXiv:1812.06127). 0: none."""
    control_variates: bool = False
    """ren, fedgan, fegan: SCAFFOLD's correction of each local step, which keeps devices with
    different data from drifting apart (arXiv:1910.06378, option II). Needs training.optimizer sgd.
    The control variates travel with the networks, in both directions."""
    epochs: int = 1
    """fedgan with fl_gan: passes over a shard per round. mdgan: passes over a shard between swaps
    of D; 0: no swaps."""
    fake_batches: int = 2
    """mdgan: batches of generated images per round. Each participant receives two of them."""
    mode: Literal["mean", "max", "softmax", "odds"] = "odds"
    """uagan, ensemble: how the D's of devices judge a generated image together. odds: mixture of
    their odds (UA-GAN). max: the highest answer (F2U). softmax: mean weighted towards high answers
    (F2A). mean: mean of their losses."""
    sharpness: float = 1.0
    """uagan, ensemble with mode softmax: λ of the weights softmax(λ D_k). 0: equal weights."""
    clip: float = 0.1
    """dp_fedavg_gan: maximum L2 norm of a device's update, C. 0: no clipping."""
    noise: float = 0.01
    """dp_fedavg_gan: noise multiplier z. The sum of updates gets Gaussian noise of standard
    deviation z C. 0: no noise."""
    epsilon_budget: float | None = None
    """dp_fedavg_gan: maximum ε of the whole run; a run that would exceed it is refused. None: no
    maximum."""
    delta: float = 1e-5
    """dp_fedavg_gan: δ at which ε is computed."""
    kl_sign: Literal[-1, 1] = -1
    """fegan: share of a device whose label histogram differs from the global one. -1: smaller. 1:
    larger, as in the authors' code."""
    smoothing: float = 1.0
    """fess_gda: p, the strength with which the server's step pulls G towards its moving centre z.
    0: none; with training.optimizer sgd it is then Local SGDA."""
    smoothing_rate: float = 0.1
    """fess_gda: β, the part of the distance to G that z moves in a round."""

    @property
    def traits(self) -> AlgorithmTraits:
        """Properties of the chosen algorithm. The defaults, if its code may not be loaded."""
        if self.name in TRAITS:
            return TRAITS[self.name]
        if not plugins.may_load("algorithm.name", self.name):
            return AlgorithmTraits()
        traits = getattr(plugins.load("algorithm.name", self.name), "traits", None)
        if isinstance(traits, AlgorithmTraits):
            return traits
        raise UserError(f"algorithm.name is {self.name!r}, but must be a subclass of Algorithm")

    @property
    def statistics_rule(self) -> Literal["average", "local", "recalibrate"]:
        """`batchnorm` with None resolved."""
        return self.batchnorm or ("local" if self.traits.is_private else "average")

    @property
    def share_rule(self) -> Literal["data", "batch", "uniform"]:
        """`shares` with None resolved."""
        return self.shares or ("uniform" if self.preset == "fl_gan" else self.traits.shares)

    def __post_init__(self) -> None:
        plugins.find("algorithm.name", self.name)
        traits = self.traits
        valid = self.name not in TRAITS or not self.options
        right = f"left out for {self.name}, whose options are keys of the section algorithm"
        require(valid, "algorithm.options", self.options, right)
        default = {option.name: option.default for option in fields(self)}
        for key, names in KNOWN_BY.items():
            right = f"left out for {self.name}; it belongs to {', '.join(names)}"
            value = getattr(self, key)
            valid = self.name in names or key in traits.keys or value == default[key]
            require(valid, f"algorithm.{key}", value, right)
        right = f"{traits.preset!r} or left out for {self.name}"
        require(self.preset in {None, traits.preset}, "algorithm.preset", self.preset, right)
        if self.preset == "fl_gan":
            right = "'uniform' or left out for fl_gan, a plain average"
            valid = self.share_rule == "uniform"
            require(valid, "algorithm.shares", self.shares, right)
            valid = self.batchnorm != "recalibrate"
            right = "'average' or 'local' for fl_gan, whose devices take different numbers of steps"
            require(valid, "algorithm.batchnorm", self.batchnorm, right)
        valid = traits.averages_networks or self.moments != "averaged"
        right = f"'persistent' or 'reset' for {self.name}"
        require(valid, "algorithm.moments", self.moments, right)
        first = 1 if self.preset == "fl_gan" else 0
        require(self.epochs >= first, "algorithm.epochs", self.epochs, f"at least {first}")
        valid = self.epochs == 1 or self.preset == "fl_gan" or traits.preset != "fl_gan"
        right = "left out for fedgan without algorithm.preset 'fl_gan'"
        require(valid, "algorithm.epochs", self.epochs, right)
        require(self.fake_batches >= 1, "algorithm.fake_batches", self.fake_batches, "at least 1")
        valid = 0 <= self.sharpness < math.inf
        require(valid, "algorithm.sharpness", self.sharpness, "at least 0 and finite")
        valid = self.mode == "softmax" or self.sharpness == 1
        right = "left out unless algorithm.mode is 'softmax'"
        require(valid, "algorithm.sharpness", self.sharpness, right)
        require(self.staleness >= 0, "algorithm.staleness", self.staleness, "at least 0")
        valid = 0 <= self.proximal < math.inf
        require(valid, "algorithm.proximal", self.proximal, "at least 0 and finite")
        valid = 0 <= self.smoothing < math.inf
        require(valid, "algorithm.smoothing", self.smoothing, "at least 0 and finite")
        rate = self.smoothing_rate
        require(0 < rate <= 1, "algorithm.smoothing_rate", rate, "above 0 and at most 1")
        valid = self.smoothing > 0 or rate == 0.1
        right = "left out when algorithm.smoothing is 0"
        require(valid, "algorithm.smoothing_rate", rate, right)
        self._check_privacy()

    def _check_privacy(self) -> None:
        valid = 0 <= self.clip < math.inf
        require(valid, "algorithm.clip", self.clip, "at least 0 and finite")
        require(0 <= self.noise < math.inf, "algorithm.noise", self.noise, "at least 0 and finite")
        require(0 < self.delta < 1, "algorithm.delta", self.delta, "between 0 and 1")
        budget = self.epsilon_budget
        require(budget is None or budget > 0, "algorithm.epsilon_budget", budget, "above 0")
        if self.traits.is_private:
            valid = self.noise == 0 or self.clip > 0
            right = "above 0 if algorithm.noise is above 0, because noise scales with it"
            require(valid, "algorithm.clip", self.clip, right)
            rule = self.statistics_rule
            valid = rule == "local" or (rule == "average" and self.noise == 0)
            right = "'local' for dp_fedavg_gan, because running statistics are sent without noise"
            require(valid, "algorithm.batchnorm", self.batchnorm, right)

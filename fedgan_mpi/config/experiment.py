"""The whole configuration, and the checks between its sections."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from fedgan_mpi.config.aggregation import AggregationConfig
from fedgan_mpi.config.algorithm import AlgorithmConfig
from fedgan_mpi.config.attack import AttackConfig
from fedgan_mpi.config.checkpoint import CheckpointConfig
from fedgan_mpi.config.data import DataConfig
from fedgan_mpi.config.evaluation import EvaluationConfig
from fedgan_mpi.config.link import LinkConfig
from fedgan_mpi.config.log import LogConfig
from fedgan_mpi.config.model import ModelConfig, default_discriminator_norm
from fedgan_mpi.config.participation import ParticipationConfig
from fedgan_mpi.config.record import RecordConfig
from fedgan_mpi.config.require import require, require_representable
from fedgan_mpi.config.run import RunConfig
from fedgan_mpi.config.training import Regularizer, TrainingConfig
from fedgan_mpi.config.wireless import WirelessConfig

_SENDS_NONE = "whose devices send no networks to average"
_WITHOUT_SHARES = ("median", "trimmed_mean", "krum", "multi_krum")
"""Rules that count each device once."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Configuration of one experiment."""

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    participation: ParticipationConfig = field(default_factory=ParticipationConfig)
    aggregation: AggregationConfig = field(default_factory=AggregationConfig)
    attack: AttackConfig = field(default_factory=AttackConfig)
    link: LinkConfig = field(default_factory=LinkConfig)
    wireless: WirelessConfig = field(default_factory=WirelessConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    record: RecordConfig = field(default_factory=RecordConfig)
    log: LogConfig = field(default_factory=LogConfig)

    @property
    def skips_non_finite(self) -> bool:
        """Whether a device whose loss or update is not finite counts as absent."""
        return self.training.non_finite == "skip" or self.algorithm.traits.is_private

    def regularizer(self, loss_has_penalty: bool) -> Regularizer:
        """Return the regularizer of D, with the penalty that belongs to a loss or a preset."""
        if self.algorithm.preset == "ua_gan":
            return Regularizer("zero_centered", 10.0)
        return self.training.resolve_regularizer(loss_has_penalty)

    def __post_init__(self) -> None:
        for section in fields(self):
            table = getattr(self, section.name)
            for key in fields(table):
                require_representable(f"{section.name}.{key.name}", getattr(table, key.name))
        if not self.algorithm.traits.has_devices:
            right = f"'all' for {self.algorithm.name}, which has no participants"
            policy = self.participation.policy
            require(policy == "all", "participation.policy", policy, right)
        self._check_importance()
        self._check_rule()
        self._check_compression()
        self._check_detector()
        self._check_control_variates()
        self._check_updates()
        self._check_staleness()
        self._check_steps()
        self._check_losses()
        self._check_survive()
        self._check_wire_dtype()
        self._check_error_feedback()
        self._check_device()

    def _check_importance(self) -> None:
        if self.participation.policy != "importance":
            return
        because = "the choice would reveal update norms"
        self._require_average("participation.policy", "importance", "another policy", because)
        right = "another policy for the preset ifl, whose shares are known only after training"
        valid = self.algorithm.preset != "ifl"
        require(valid, "participation.policy", "importance", right)

    def _require_average(self, key: str, value: str, right: str, because: str) -> None:
        """Raise UserError unless devices send networks, and without noise.

        because: the reason why a private algorithm permits nothing else than `right`.
        """
        name, traits = self.algorithm.name, self.algorithm.traits
        reason = f"because {because}" if traits.is_private else _SENDS_NONE
        require(traits.averages_networks, key, value, f"{right} for {name}, {reason}")

    def _check_rule(self) -> None:
        rule, algorithm = self.aggregation.rule, self.algorithm
        if rule == "mean":
            return
        self._require_average("aggregation.rule", rule, "'mean'", "ε assumes a sum with noise")
        for key, value in (
            ("participation.policy", self.participation.policy),
            ("algorithm.batchnorm", algorithm.batchnorm),
            ("algorithm.preset", algorithm.preset),
        ):
            right = f"'mean' when {key} is {value!r}, which weights updates"
            valid = value not in ("importance", "recalibrate", "ifl")
            require(valid, "aggregation.rule", rule, right)

    def _check_compression(self) -> None:
        compression, algorithm = self.aggregation.compression, self.algorithm
        if compression == "none":
            return
        because = "ε assumes clipped updates"
        self._require_average("aggregation.compression", compression, "'none'", because)
        right = "'none' for the preset ifl, whose shares are known only after training"
        require(algorithm.preset != "ifl", "aggregation.compression", compression, right)
        right = f"'none' when link.wire_dtype is {self.link.wire_dtype!r}, which rounds messages"
        valid = self.link.wire_dtype in ("float32", "float64")
        require(valid, "aggregation.compression", compression, right)

    def _check_detector(self) -> None:
        detector, algorithm = self.aggregation.detector, self.algorithm
        if detector == "none":
            return
        rule, policy = self.aggregation.rule, self.participation.policy
        self._require_average("aggregation.detector", detector, "'none'", "ε assumes equal shares")
        for key, value in (
            ("aggregation.rule", rule),
            ("participation.policy", policy),
            ("algorithm.preset", algorithm.preset),
            ("algorithm.control_variates", algorithm.control_variates),
        ):
            right = f"'none' when {key} is {value!r}, which has its own weights or none"
            valid = value not in (*_WITHOUT_SHARES, "importance", "ifl", True)
            require(valid, "aggregation.detector", detector, right)

    def _check_control_variates(self) -> None:
        if not self.algorithm.control_variates:
            return
        for key, value, valid in (
            ("training.optimizer", self.training.optimizer, ("sgd",)),
            ("aggregation.rule", self.aggregation.rule, ("mean",)),
            ("aggregation.compression", self.aggregation.compression, ("none",)),
            ("link.wire_dtype", self.link.wire_dtype, ("float32", "float64")),
            ("link.survive", self.link.survive, (False,)),
            ("training.non_finite", self.training.non_finite, ("stop",)),
        ):
            right = " or ".join(map(repr, valid)) + " when algorithm.control_variates is True"
            require(value in valid, key, value, right)
        policy, preset = self.participation.policy, self.algorithm.preset
        right = "another policy when algorithm.control_variates is True"
        require(policy != "importance", "participation.policy", policy, right)
        right = "left out when algorithm.control_variates is True, which needs fixed shares"
        require(preset != "ifl", "algorithm.preset", preset, right)

    def _check_updates(self) -> None:
        algorithm, traits = self.algorithm, self.algorithm.traits
        right = f"left out for {algorithm.name}, {_SENDS_NONE}"
        sends = traits.averages_networks or traits.is_private
        attack, optimizer = self.attack, self.aggregation.server_optimizer
        require(sends or not attack.devices, "attack.devices", list(attack.devices), right)
        valid = not attack.devices or attack.from_round <= self.training.rounds
        require(valid, "attack.from_round", attack.from_round, "at most training.rounds")
        valid = sends or self.aggregation.is_plain
        require(valid, "aggregation.server_optimizer", optimizer, right)

    def _check_staleness(self) -> None:
        staleness, algorithm = self.algorithm.staleness, self.algorithm
        if staleness == 0:
            return
        right = "0 unless wireless.on is true: the cell decides when uploads arrive"
        require(self.wireless.on, "algorithm.staleness", staleness, right)
        for key, value, refused in (
            ("wireless.compute", self.wireless.compute, "measured"),
            ("wireless.multiplexing", self.wireless.multiplexing, "tdma"),
            ("participation.policy", self.participation.policy, "importance"),
            ("algorithm.moments", algorithm.moments, "averaged"),
            ("algorithm.batchnorm", algorithm.batchnorm, "recalibrate"),
            ("algorithm.control_variates", algorithm.control_variates, True),
            ("link.survive", self.link.survive, True),
        ):
            right = f"0 when {key} is {value!r}"
            require(value != refused, "algorithm.staleness", staleness, right)
        for key, value, only in (
            ("aggregation.rule", self.aggregation.rule, "mean"),
            ("aggregation.compression", self.aggregation.compression, "none"),
        ):
            right = f"0 unless {key} is {only!r}"
            require(value == only, "algorithm.staleness", staleness, right)

    def _check_steps(self) -> None:
        name, steps = self.algorithm.name, self.training.generator_steps
        valid = steps is None or not self.algorithm.traits.sets_generator_steps
        right = f"left out for {name}, which determines the steps on G"
        require(valid, "training.generator_steps", steps, right)
        steps = self.training.discriminator_steps
        valid = self.algorithm.preset != "fl_gan" or steps == 1
        right = "left out for fl_gan, whose steps follow from algorithm.epochs"
        require(valid, "training.discriminator_steps", steps, right)

    def _check_losses(self) -> None:
        algorithm, loss, mode = self.algorithm, self.training.loss, self.algorithm.mode
        mixes_odds = algorithm.traits.mixes_discriminators and mode not in ("mean", "max")
        valid = not mixes_odds or loss not in ("lsgan", "hinge", "wgan-gp")
        right = f"'mean' or 'max' when training.loss is {loss!r}, whose D gives no probabilities"
        require(valid, "algorithm.mode", mode, right)
        regularizer = self.training.regularizer
        for has_own, name in ((loss == "wgan-gp", loss), (algorithm.preset == "ua_gan", "ua_gan")):
            right = f"left out for {name}, which has its own penalty"
            valid = not has_own or regularizer == "none"
            require(valid, "training.regularizer", regularizer, right)
        target = self.training.augment_target
        right = f"0 when training.loss is {loss!r}, whose logits have no meaning by sign"
        valid = target == 0 or loss not in ("lsgan", "wgan-gp")
        require(valid, "training.augment_target", target, right)
        right = f"0 for {algorithm.name}, which does not protect the sign that a device sends"
        valid = target == 0 or not algorithm.traits.is_private
        require(valid, "training.augment_target", target, right)
        # Without shards of the user's own, the images are the digits, of 16 pixels.
        size = self.model.size or (16 if self.data.shards is None else None)
        if size is not None or self.model.discriminator_norm is not None:
            self.check_norm(size)

    def check_norm(self, size: int | None) -> None:
        """Raise UserError if D has BatchNorm at this image size, and the penalty permits none.

        size: None if not known yet; then model.discriminator_norm must not be None.
        """
        is_wgan = self.training.loss == "wgan-gp"
        penalized = is_wgan or self.training.regularizer == "gradient_penalty"
        if not penalized or self.model.architecture != "dcgan":
            return
        what = "wgan-gp" if is_wgan else "gradient_penalty"
        norm = self.model.discriminator_norm
        is_mixture = self.algorithm.traits.mixes_discriminators  # see choose_by_size
        used = norm or ("none" if is_mixture else default_discriminator_norm(size))
        right = f"'none' for {what}, whose norm needs a D without dependence between images"
        if norm is None:
            right = f"{right}; None means {used!r} at {size} pixels"
        require(used == "none", "model.discriminator_norm", norm, right)

    def _check_survive(self) -> None:
        if not self.link.survive:
            return
        name, traits = self.algorithm.name, self.algorithm.traits
        right = f"left out for {name}, which has no device ranks"
        require(traits.has_devices, "link.survive", True, right)
        valid = not traits.is_private or self.algorithm.noise == 0
        right = f"left out for {name}, because ε depends on the number of devices"
        require(valid, "link.survive", True, right)

    def _check_wire_dtype(self) -> None:
        algorithm, traits = self.algorithm, self.algorithm.traits
        wire_dtype, precision = self.link.wire_dtype, self.training.precision
        valid = (wire_dtype == "float64") == (precision == "float64")
        right = "'float64'" if precision == "float64" else "'float32', 'bfloat16' or 'float16'"
        right += f" when training.precision is {precision!r}"
        require(valid, "link.wire_dtype", wire_dtype, right)
        optimizer = self.training.optimizer
        valid = algorithm.moments != "averaged" or optimizer in ("adam", "sgd")
        right = f"'persistent' or 'reset' for the optimizer {optimizer}"
        require(valid, "algorithm.moments", algorithm.moments, right)
        averages_adam = algorithm.moments == "averaged" and optimizer == "adam"
        for quantity, is_sent in (
            (f"{algorithm.name}'s gradients", traits.exchanges_images),
            ("averaged moments", averages_adam),
            ("clipped updates", traits.is_private and algorithm.noise > 0),
        ):
            valid = wire_dtype != "float16" or not is_sent
            right = f"'bfloat16' or 'float32' for {quantity}, which exceed the range of float16"
            require(valid, "link.wire_dtype", wire_dtype, right)

    def _check_error_feedback(self) -> None:
        if not self.link.error_feedback:
            return
        valid = self.link.wire_dtype in ("bfloat16", "float16")
        right = "'bfloat16' or 'float16' when link.error_feedback is true"
        require(valid, "link.wire_dtype", self.link.wire_dtype, right)
        right = f"left out for {self.algorithm.name}, whose devices send no networks to average"
        valid = self.algorithm.traits.averages_networks
        require(valid, "link.error_feedback", True, right)

    def _check_device(self) -> None:
        training = self.training
        for key, is_set in (
            (f"link.route is {self.link.route!r}", self.link.route in ("cuda", "nccl")),
            ("training.graphs is 'on'", training.graphs == "on"),
        ):
            valid = training.device != "cpu" or not is_set
            right = f"'auto' or 'cuda' when {key}"
            require(valid, "training.device", training.device, right)
        valid = training.autocast == "off" or training.precision == "float32"
        right = "'off' when training.precision is 'float64'"
        require(valid, "training.autocast", training.autocast, right)

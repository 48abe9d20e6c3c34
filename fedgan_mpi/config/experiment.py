"""One experiment: all sections, and what they ask of each other."""

from __future__ import annotations

from dataclasses import dataclass, field

from fedgan_mpi.config.algorithm import AlgorithmConfig
from fedgan_mpi.config.link import LinkConfig
from fedgan_mpi.config.model import ModelConfig
from fedgan_mpi.config.participation import ParticipationConfig
from fedgan_mpi.config.require import require
from fedgan_mpi.config.run import (
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    RecordConfig,
    RunConfig,
)
from fedgan_mpi.config.training import TrainingConfig
from fedgan_mpi.config.wireless import WirelessConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    """One experiment."""

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    participation: ParticipationConfig = field(default_factory=ParticipationConfig)
    link: LinkConfig = field(default_factory=LinkConfig)
    wireless: WirelessConfig = field(default_factory=WirelessConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    record: RecordConfig = field(default_factory=RecordConfig)

    @property
    def skips_non_finite(self) -> bool:
        """Whether a device whose loss or update is not finite counts as absent."""
        return self.training.non_finite == "skip" or self.algorithm.traits.is_private

    def __post_init__(self) -> None:
        name, traits = self.algorithm.name, self.algorithm.traits
        if not traits.has_devices:
            right = f"'all' for {name}, which has no participants"
            policy = self.participation.policy
            require(policy == "all", "participation.policy", policy, right)
        self._check_importance()
        self._check_steps()
        self._check_losses()
        if self.link.survive:
            right = f"left out for {name}, which has no device ranks"
            require(traits.has_devices, "link.survive", True, right)
            fits = not traits.is_private or self.algorithm.noise == 0
            right = f"left out for {name}: with fewer devices ε would be another"
            require(fits, "link.survive", True, right)
        if self.link.route == "cuda":
            right = "'auto' or 'cuda' when link.route is 'cuda'"
            require(self.training.device != "cpu", "training.device", self.training.device, right)
        self._check_wire()
        self._check_compute()

    def _check_wire(self) -> None:
        name, traits = self.algorithm.name, self.algorithm.traits
        wire, precision = self.link.wire_dtype, self.training.precision
        fits = (wire == "float64") == (precision == "float64")
        narrow = "" if precision == "float64" else ", or 'bfloat16' or 'float16'"
        right = f"{precision!r} as training.precision is{narrow}"
        require(fits, "link.wire_dtype", wire, right)
        if wire == "float16":
            right = "'bfloat16' or 'float32' for {}, which float16 has no range for"
            fits = not traits.devices_keep_discriminator
            what = f"{name}'s gradients of single pixels"
            require(fits, "link.wire_dtype", wire, right.format(what))
            fits = self.algorithm.moments != "averaged" or self.training.optimizer != "adam"
            what = "averaged moments, squares of gradients"
            require(fits, "link.wire_dtype", wire, right.format(what))
            fits = not traits.is_private or self.algorithm.noise == 0
            what = "clipped updates"
            require(fits, "link.wire_dtype", wire, right.format(what))
        if self.link.error_feedback:
            fits = wire in ("bfloat16", "float16")
            right = "'bfloat16' or 'float16' when link.error_feedback is true"
            require(fits, "link.wire_dtype", wire, right)
            right = f"left out for {name}, whose messages do not continue those of the round before"
            require(traits.averages_networks, "link.error_feedback", True, right)

    def _check_compute(self) -> None:
        training = self.training
        fits = training.autocast == "off" or training.precision == "float32"
        right = "'off' when training.precision is 'float64'"
        require(fits, "training.autocast", training.autocast, right)
        fits = training.graphs != "on" or training.device != "cpu"
        right = "'auto' or 'cuda' when training.graphs is 'on'"
        require(fits, "training.device", training.device, right)

    def _check_importance(self) -> None:
        if self.participation.policy != "importance":
            return
        traits = self.algorithm.traits
        private = "whose noise would not hide who is chosen"
        why = private if traits.is_private else "whose devices send no models"
        right = f"another for {self.algorithm.name}, {why}"
        require(traits.averages_networks, "participation.policy", "importance", right)
        fits = self.algorithm.preset != "ifl"
        right = "another for ifl, whose shares are only known after training"
        require(fits, "participation.policy", "importance", right)

    def _check_steps(self) -> None:
        name, steps = self.algorithm.name, self.training.generator_steps
        fits = steps is None or not self.algorithm.traits.sets_generator_steps
        right = f"left out for {name}, which says itself how often G steps"
        require(fits, "training.generator_steps", steps, right)
        steps = self.training.discriminator_steps
        fits = self.algorithm.preset != "fl_gan" or steps == 1
        right = "left out for fl_gan, whose algorithm.epochs say how many"
        require(fits, "training.discriminator_steps", steps, right)

    def _check_losses(self) -> None:
        loss, mode = self.training.loss, self.algorithm.mode
        probabilities = loss in ("nonsaturating", "saturating")
        fits = "mode" not in self.algorithm.traits.keys or probabilities or mode in ("mean", "max")
        right = f"'mean' or 'max' when training.loss is {loss!r}, whose D gives no probability"
        require(fits, "algorithm.mode", mode, right)
        norm = self.model.discriminator_norm
        fits = loss != "wgan-gp" or self.model.architecture != "dcgan" or norm == "none"
        right = "'none' for wgan-gp, whose penalty is for each image alone"
        require(fits, "model.discriminator_norm", norm, right)

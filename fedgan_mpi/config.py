"""Every knob of an experiment: its meaning, type, unit and default. Knows neither MPI nor torch.

The classes are the one source of the TOML keys, the flags, their help and their checks;
`command_line.py` reads them. A key is named `section.key`, in a file as well as on the command
line.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from fedgan_mpi.errors import UserError

NETWORK_SIZES = (16, 32, 64, 128)
"""Heights and widths, in pixels, that there are networks for."""


def _require(good: bool, key: str, value: object, right: str) -> None:
    if not good:
        raise UserError(f"{key} is {value!r}, but must be {right}")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Name, place and seed."""

    name: str | None = None
    """Name of the run's directory. None: made from data set, algorithm and schedule, with a number
    when taken."""
    directory: str = "runs"
    """Where run directories are made; on a cluster, a file system that every rank sees."""
    seed: int = 0
    """Seed of every random stream: parameters, batches, noise, participation, scores."""

    def __post_init__(self) -> None:
        fits = self.name is None or (self.name not in {"", ".", ".."} and "/" not in self.name)
        _require(fits, "run.name", self.name, "a plain directory name")
        _require(self.directory != "", "run.directory", self.directory, "a path")
        _require(0 <= self.seed < 2**63, "run.seed", self.seed, "from 0 to 2^63 - 1")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is learned from."""

    shards: str | None = None
    """Directory of device_0001.h5 … and shards.json, as data_prep writes it. None: the embedded
    digits."""
    heldout: str | None = None
    """HDF5 file of real images that no device trains on, for the scores' floor. None: heldout.h5
    beside the shards."""
    devices: int = 8
    """Shards that the embedded digits are cut into; with data.shards their number counts."""
    read: Literal["auto", "memory", "file"] = "auto"
    """Keep a rank's shards in memory, or read each batch from the file. auto: memory where a
    quarter of it suffices."""

    def __post_init__(self) -> None:
        _require(1 <= self.devices <= 100, "data.devices", self.devices, "from 1 to 100")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The two networks."""

    architecture: Literal["dcgan"] = "dcgan"
    """The pair of networks."""
    size: Literal[16, 32, 64, 128] | None = None
    """Height and width of an image, pixels. None: as in the shards."""
    channels: Literal[1, 3] | None = None
    """Colour channels. None: as in the shards."""
    nz: int = 100
    """Length of the latent noise z."""
    width: int | None = None
    """Feature maps of the layer next to the image, in G and in D; it doubles with every halving of
    the size. None: 32 for 16 pixels, 64 above."""
    discriminator_norm: Literal["batch", "none"] | None = None
    """Normalization in D. None: batch, as in DCGAN, but none for 16 pixels, where the few thousand
    images of such data sets let a D with BatchNorm win after some hundred rounds."""
    ema: float = 0.99
    """Decay of G's exponential moving average, which is then what is scored and exported. 0:
    none."""
    initialization: Literal["fan_in", "dcgan"] = "fan_in"
    """Start of the parameters: torch's own, scaled by fan-in, or DCGAN's N(0, 0.02), meant for
    widths of 64 and more."""

    def __post_init__(self) -> None:
        _require(self.nz >= 1, "model.nz", self.nz, "at least 1")
        _require(self.width is None or self.width >= 1, "model.width", self.width, "at least 1")
        _require(0 <= self.ema < 1, "model.ema", self.ema, "from 0 to below 1")


@dataclass(frozen=True, kw_only=True)
class AlgorithmConfig:
    """The method and its open choices."""

    name: Literal["ren", "centralized"] = "ren"
    """How the GAN is trained: ren (the paper's method), centralized (all shards in one process, the
    reference)."""
    schedule: Literal["serial", "parallel"] = "serial"
    """serial: G trains after the devices, against the new D. parallel: meanwhile, against the D
    they started from."""
    shares: Literal["data", "batch", "uniform"] = "data"
    """A participant's share in the average: by images held, by batch size, or equal."""
    moments: Literal["persistent", "reset", "averaged"] = "persistent"
    """A device's optimizer moments: its own for ever, zero in every round, or averaged like D."""
    batchnorm: Literal["average", "local", "recalibrate"] = "average"
    """BatchNorm's running statistics: averaged with D, never sent, or averaged with the variance
    between devices."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Rounds, steps and optimizers."""

    rounds: int = 600
    """Communication rounds T."""
    discriminator_steps: int = 1
    """Local steps on D per participant and round, n_d."""
    generator_steps: int = 3
    """Server steps on G per round, n_g."""
    batch_size: int = 32
    """Images per local step; a device with fewer uses all it has."""
    generator_batch_size: int = 64
    """Fakes per server step."""
    generator_lr: float = 2e-4
    """Learning rate of G."""
    discriminator_lr: float = 2e-4
    """Learning rate of D."""
    betas: tuple[float, float] = (0.5, 0.999)
    """Decay rates of Adam's moments."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """adam, or plain gradient descent."""
    loss: Literal["nonsaturating", "saturating"] = "nonsaturating"
    """G's loss: -log D(G(z)), or the paper's minimax log(1 - D(G(z)))."""
    precision: Literal["float32", "float64"] = "float32"
    """Type of parameters and arithmetic; float64 for studies of exactness."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """What computes. auto: the GPU of the rank's place on its node where torch sees one, else the
    CPU."""

    def __post_init__(self) -> None:
        _require(self.rounds >= 1, "training.rounds", self.rounds, "at least 1")
        for key in ("discriminator_steps", "generator_steps"):
            _require(getattr(self, key) >= 0, f"training.{key}", getattr(self, key), "at least 0")
        for key in ("batch_size", "generator_batch_size"):
            size = getattr(self, key)
            _require(size >= 1, f"training.{key}", size, "at least 1")
        for key in ("generator_lr", "discriminator_lr"):
            rate = getattr(self, key)
            _require(0 < rate < math.inf, f"training.{key}", rate, "above 0 and finite")
        in_range = all(0 <= beta < 1 for beta in self.betas)
        _require(in_range, "training.betas", list(self.betas), "two numbers from 0 to below 1")


@dataclass(frozen=True, kw_only=True)
class ParticipationConfig:
    """Who joins a round."""

    policy: Literal["all", "random", "round_robin"] = "all"
    """Who takes part in a round: everyone, count drawn anew, or count in turn."""
    count: int | None = None
    """Participants of a round, N; needed for random and round_robin."""

    def __post_init__(self) -> None:
        if self.policy == "all":
            right = "left out when participation.policy is 'all'"
            _require(self.count is None, "participation.count", self.count, right)
        else:
            right = f"at least 1 when participation.policy is {self.policy!r}"
            _require((self.count or 0) >= 1, "participation.count", self.count, right)


@dataclass(frozen=True, kw_only=True)
class LinkConfig:
    """How models travel between ranks."""

    route: Literal["host", "cuda"] = "host"
    """Memory that MPI reads: host, or the GPU's own where the MPI library is CUDA-aware."""
    wire_dtype: Literal["float32", "float64"] = "float32"
    """Type of a parameter on the wire; the same as training.precision."""
    average: Literal["reduce", "gather"] = "reduce"
    """reduce: each rank adds up its devices, the link adds the ranks. gather: device by device in
    order, so bitwise the same for any number of ranks with equally many threads (one, unless
    OMP_NUM_THREADS says otherwise)."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Scores."""

    every: int = 100
    """Rounds between scores; 0: only before the first and after the last round."""
    samples: int | None = None
    """Generated images per score. None: as many as are held out, at most 10,000."""

    def __post_init__(self) -> None:
        _require(self.every >= 0, "evaluation.every", self.every, "at least 0")
        right = "at least 2"
        _require(
            self.samples is None or self.samples >= 2, "evaluation.samples", self.samples, right
        )


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What survives the job."""

    every: int = 100
    """Rounds between checkpoints; 0: only after the last round."""
    keep_last: int = 2
    """Checkpoints kept; older ones are deleted."""

    def __post_init__(self) -> None:
        _require(self.every >= 0, "checkpoint.every", self.every, "at least 0")
        _require(self.keep_last >= 1, "checkpoint.keep_last", self.keep_last, "at least 1")


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
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        if self.algorithm.name == "centralized":
            right = "'all' for centralized, which has no participants"
            policy = self.participation.policy
            _require(policy == "all", "participation.policy", policy, right)
        if self.link.route == "cuda":
            right = "'auto' or 'cuda' when link.route is 'cuda'"
            _require(self.training.device != "cpu", "training.device", self.training.device, right)
        precision = self.training.precision
        right = f"{precision!r} as training.precision is"
        _require(self.link.wire_dtype == precision, "link.wire_dtype", self.link.wire_dtype, right)

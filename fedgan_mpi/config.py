"""Every knob of an experiment: its meaning, type, unit and default. Knows neither MPI nor torch.

The classes are the one source of the TOML keys, the flags, their help and their checks;
`command_line.py` reads them. A key is named `section.key`, in a file as well as on the command
line.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Literal, get_args

from fedgan_mpi.errors import UserError

Metric = Literal["frechet", "classes", "kid", "prdc"]
METRICS: tuple[Metric, ...] = get_args(Metric)

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

    architecture: Literal["dcgan", "sngan"] = "dcgan"
    """The pair of networks: dcgan, or sngan (residual, spectral normalization in D; for 32 and 64
    pixels)."""
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
    """Normalization in dcgan's D. None: batch, as in DCGAN, but none for 16 pixels, where the few
    thousand images of such data sets let a D with BatchNorm win after some hundred rounds."""
    conditional: bool = False
    """Give both networks the class: G with its noise, D by projection. For labelled shards; the
    classes of fakes are drawn from all devices' label histogram together."""
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
        if self.architecture == "sngan":
            right = "left out for sngan, whose D has spectral normalization"
            norm = self.discriminator_norm
            _require(norm is None, "model.discriminator_norm", norm, right)


_DEVICES_TRAIN_G = ("fedgan", "fegan")
_DEVICES_KEEP_D = ("mdgan", "uagan")
_AVERAGING = ("ren", "fedgan", "dp_fedavg_gan", "fegan")
_BELONGS_TO = {
    "schedule": ("ren",),
    "shares": ("ren", "fedgan", "uagan"),
    "batchnorm": _AVERAGING,
    "preset": _DEVICES_TRAIN_G,
    "local_update": _DEVICES_TRAIN_G,
    "epochs": ("fedgan", "mdgan"),
    "fake_batches": ("mdgan",),
    "mode": ("uagan",),
    "sharpness": ("uagan",),
    "clip": ("dp_fedavg_gan",),
    "noise": ("dp_fedavg_gan",),
    "epsilon_budget": ("dp_fedavg_gan",),
    "delta": ("dp_fedavg_gan",),
    "kl_sign": ("fegan",),
}
"""The algorithms that know a key; to others it must not be given."""


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
    def devices_train_generator(self) -> bool:
        return self.name in _DEVICES_TRAIN_G

    @property
    def devices_keep_discriminator(self) -> bool:
        return self.name in _DEVICES_KEEP_D

    @property
    def statistics_rule(self) -> Literal["average", "local", "recalibrate"]:
        """`batchnorm`, with None resolved."""
        return self.batchnorm or ("local" if self.name == "dp_fedavg_gan" else "average")

    @property
    def share_rule(self) -> Literal["data", "batch", "uniform"]:
        """`shares`, with None resolved."""
        uniform = self.preset == "fl_gan" or self.name in ("dp_fedavg_gan", "mdgan")
        return self.shares or ("uniform" if uniform else "data")

    def __post_init__(self) -> None:
        default = {option.name: option.default for option in fields(self)}
        for key, names in _BELONGS_TO.items():
            right = f"left out for {self.name}; it belongs to {', '.join(names)}"
            value = getattr(self, key)
            fits = self.name in names or value == default[key]
            _require(fits, f"algorithm.{key}", value, right)
        right = {"fedgan": "'fl_gan' or left out", "fegan": "'ifl' or left out"}.get(self.name, "")
        fits = self.preset in {None, {"fedgan": "fl_gan", "fegan": "ifl"}.get(self.name)}
        _require(fits, "algorithm.preset", self.preset, f"{right} for {self.name}")
        if self.preset == "fl_gan":
            right = "'uniform' or left out for fl_gan, a plain average"
            fits = self.share_rule == "uniform"
            _require(fits, "algorithm.shares", self.shares, right)
            fits = self.batchnorm != "recalibrate"
            right = "'average' or 'local' for fl_gan, whose devices take unequally many steps"
            _require(fits, "algorithm.batchnorm", self.batchnorm, right)
        if self.devices_keep_discriminator or self.name in ("dp_fedavg_gan", "centralized"):
            right = f"'persistent' or 'reset' for {self.name}"
            _require(self.moments != "averaged", "algorithm.moments", self.moments, right)
        first = 1 if self.preset == "fl_gan" else 0
        _require(self.epochs >= first, "algorithm.epochs", self.epochs, f"at least {first}")
        fits = self.name != "fedgan" or self.preset == "fl_gan" or self.epochs == 1
        right = "left out for fedgan without algorithm.preset 'fl_gan'"
        _require(fits, "algorithm.epochs", self.epochs, right)
        _require(self.fake_batches >= 1, "algorithm.fake_batches", self.fake_batches, "at least 1")
        fits = 0 <= self.sharpness < math.inf
        _require(fits, "algorithm.sharpness", self.sharpness, "at least 0 and finite")
        fits = self.mode == "softmax" or self.sharpness == 1
        right = "left out unless algorithm.mode is 'softmax'"
        _require(fits, "algorithm.sharpness", self.sharpness, right)
        self._check_privacy()

    def _check_privacy(self) -> None:
        fits = 0 <= self.clip < math.inf
        _require(fits, "algorithm.clip", self.clip, "at least 0 and finite")
        _require(0 <= self.noise < math.inf, "algorithm.noise", self.noise, "at least 0 and finite")
        _require(0 < self.delta < 1, "algorithm.delta", self.delta, "between 0 and 1")
        budget = self.epsilon_budget
        _require(budget is None or budget > 0, "algorithm.epsilon_budget", budget, "above 0")
        if self.name == "dp_fedavg_gan":
            fits = self.noise == 0 or self.clip > 0
            right = "above 0 when algorithm.noise is: noise is measured by it"
            _require(fits, "algorithm.clip", self.clip, right)
            rule = self.statistics_rule
            fits = rule == "local" or (rule == "average" and self.noise == 0)
            right = "'local' for dp_fedavg_gan: running statistics would leave without noise"
            _require(fits, "algorithm.batchnorm", self.batchnorm, right)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Rounds, steps and optimizers."""

    rounds: int = 600
    """Communication rounds T."""
    discriminator_steps: int = 1
    """Local steps on D per participant and round, n_d; on both networks for fedgan and fegan."""
    generator_steps: int | None = None
    """Server steps on G per round, n_g. None: 3. To be left out where the algorithm says how many:
    one a round for mdgan and uagan, one with each step on D for fedgan and fegan."""
    batch_size: int = 32
    """Images per local step; a device with fewer uses all it has."""
    generator_batch_size: int = 64
    """Fakes per server step; mdgan and uagan send batches of batch_size."""
    generator_lr: float = 2e-4
    """Learning rate of G."""
    discriminator_lr: float = 2e-4
    """Learning rate of D."""
    betas: tuple[float, float] = (0.5, 0.999)
    """Decay rates of Adam's moments."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """adam, or plain gradient descent."""
    loss: Literal["nonsaturating", "saturating", "lsgan", "hinge", "wgan-gp"] = "nonsaturating"
    """The players' losses: G's -log D(G(z)), or the paper's minimax log(1 - D(G(z))); least
    squares, hinge, or Wasserstein with a gradient penalty."""
    gradient_penalty: float = 10.0
    """wgan-gp: weight λ of the penalty."""
    non_finite: Literal["stop", "skip"] = "stop"
    """A device whose loss or update is not finite: the run stops after that round, or the device
    counts as absent in it. dp_fedavg_gan skips in any case."""
    precision: Literal["float32", "float64"] = "float32"
    """Type of parameters and arithmetic; float64 for studies of exactness."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """What computes. auto: the GPU of the rank's place on its node where torch sees one, else the
    CPU."""

    autocast: Literal["off", "bfloat16"] = "off"
    """Type that networks are computed in while they train; parameters, losses and moments keep
    training.precision. bfloat16 is for GPUs, and for CPUs with avx512_bf16 or AMX."""
    memory_format: Literal["contiguous", "channels_last"] = "contiguous"
    """Order of kernels and feature maps in memory. channels_last suits tensor cores and bfloat16;
    parameters then lie so in the vector that travels."""
    tf32: bool = True
    """On a GPU, let tensor cores round the factors of float32 products to 10 bits."""
    graphs: Literal["auto", "on", "off"] = "auto"
    """On a GPU, record optimizer steps once and replay them (CUDA graphs). auto: where that is
    possible; on: or else the run ends."""
    pin: bool = True
    """Where ranks outnumber the cores of their one machine, give each a core to compute on, so that
    none idles. False where other programs share these cores."""

    @property
    def server_steps(self) -> int:
        """n_g: `generator_steps`, with None resolved."""
        return 3 if self.generator_steps is None else self.generator_steps

    def __post_init__(self) -> None:
        _require(self.rounds >= 1, "training.rounds", self.rounds, "at least 1")
        for key in ("discriminator_steps", "generator_steps"):
            steps = getattr(self, key)
            _require(steps is None or steps >= 0, f"training.{key}", steps, "at least 0")
        penalty = self.gradient_penalty
        _require(0 <= penalty < math.inf, "training.gradient_penalty", penalty, "at least 0")
        for key in ("batch_size", "generator_batch_size"):
            size = getattr(self, key)
            _require(size >= 1, f"training.{key}", size, "at least 1")
        for key in ("generator_lr", "discriminator_lr"):
            rate = getattr(self, key)
            _require(0 < rate < math.inf, f"training.{key}", rate, "above 0 and finite")
        in_range = all(0 <= beta < 1 for beta in self.betas)
        _require(in_range, "training.betas", list(self.betas), "two numbers from 0 to below 1")


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
                _require(value is None, f"participation.{key}", value, right)
        if self.fraction is not None:
            fits = 0 < self.fraction <= 1
            _require(fits, "participation.fraction", self.fraction, "above 0 and at most 1")
            right = "left out when participation.fraction is given"
            _require(self.count is None, "participation.count", self.count, right)
        elif self.policy != "all":
            right = f"at least 1 when participation.policy is {self.policy!r}"
            _require((self.count or 0) >= 1, "participation.count", self.count, right)


@dataclass(frozen=True, kw_only=True)
class WirelessConfig:
    """The simulated radio cell: who is where, what a round would take there. Common practice; the
    paper's own values are not public."""

    on: bool = False
    """Tell wireless_seconds of every round in stats.jsonl."""
    seed: int = 0
    """Seed of the cell: places and shadowing. Not the run's, so that runs of several seeds share
    it."""
    radius_m: float = 500.0
    """Radius of the disc that devices are placed in, evenly by area, metres."""
    nearest_m: float = 10.0
    """Least distance of a device from the server, metres."""
    path_loss_db_at_1km: float = 128.1
    """Path loss at 1 km, dB."""
    path_loss_db_per_decade: float = 37.6
    """What ten times the distance adds to it, dB."""
    shadowing_db: float = 0.0
    """Standard deviation of a device's own addition to it, dB; 0: none."""
    noise_dbm_per_hz: float = -174.0
    """Power density of the noise, dBm/Hz."""
    noise_figure_db: float = 0.0
    """What a receiver adds to it, dB."""
    device_power_dbm: float = 24.0
    """Transmit power of a device, dBm."""
    server_power_dbm: float = 46.0
    """Transmit power of the server, dBm."""
    bandwidth_hz: float = 10e6
    """Bandwidth of the whole cell, in either direction, Hz."""
    multiplexing: Literal["ofdma", "tdma"] = "ofdma"
    """ofdma: each of N participants has 1/N of the band, all at once. tdma: the whole band, one
    after the other."""
    fading: Literal["rayleigh", "none"] = "rayleigh"
    """rayleigh: transfers go at the mean rate over the fading, as they last for hundreds of its
    blocks; one draw a round chooses participants. none: the channel is its mean."""
    downlink: Literal["multicast", "unicast"] = "multicast"
    """How a model goes down: once, at the rate of the weakest participant, or to each apart. Fakes
    that differ by device go to each apart anyway."""
    bits_per_parameter: int = 16
    """Bits of a number over the air: 16 as in the paper, whatever link.wire_dtype is."""
    compute: Literal["macs", "measured"] = "macs"
    """Time of computation: multiply-accumulates, counted from the networks, over a rate, or as this
    machine took it."""
    device_macs_per_second: tuple[float, ...] = (1e11,)
    """Multiply-accumulates a second of device 1, 2, …; one number goes for all."""
    server_macs_per_second: float = 1e12
    """The same of the server."""

    def __post_init__(self) -> None:
        _require(0 <= self.seed < 2**63, "wireless.seed", self.seed, "from 0 to 2^63 - 1")
        for key in ("radius_m", "nearest_m", "bandwidth_hz", "server_macs_per_second"):
            value = getattr(self, key)
            _require(0 < value < math.inf, f"wireless.{key}", value, "above 0 and finite")
        fits = self.nearest_m <= self.radius_m
        right = f"at most wireless.radius_m, {self.radius_m:g}"
        _require(fits, "wireless.nearest_m", self.nearest_m, right)
        for key in ("shadowing_db", "noise_figure_db", "path_loss_db_per_decade"):
            value = getattr(self, key)
            _require(0 <= value < math.inf, f"wireless.{key}", value, "at least 0 and finite")
        powers = ("device_power_dbm", "server_power_dbm", "noise_dbm_per_hz")
        for key in (*powers, "path_loss_db_at_1km"):
            value = getattr(self, key)
            _require(math.isfinite(value), f"wireless.{key}", value, "finite")
        bits = self.bits_per_parameter
        _require(1 <= bits <= 64, "wireless.bits_per_parameter", bits, "from 1 to 64")
        rates = self.device_macs_per_second
        fits = len(rates) > 0 and all(0 < rate < math.inf for rate in rates)
        right = "numbers above 0, one for all devices or one each"
        _require(fits, "wireless.device_macs_per_second", list(rates), right)


@dataclass(frozen=True, kw_only=True)
class LinkConfig:
    """How models travel between ranks."""

    route: Literal["auto", "host", "cuda"] = "auto"
    """Memory that MPI reads: the GPU's own where the MPI library is CUDA-aware (cuda), or host
    memory, by which a GPU's vectors then go piece by piece. auto: cuda where a few numbers come
    through."""
    wire_dtype: Literal["float32", "float64", "bfloat16", "float16"] = "float32"
    """Type of a number on the wire, down and up. 16 bits halve the bytes: each is rounded to the
    nearest, sums are taken in float32 device by device, and the server keeps its own as they
    are. float64 with training.precision float64, the others with float32."""
    error_feedback: bool = False
    """With 16 bits: what rounding took is kept, by each device and by the server, and sent with the
    next values. bfloat16 trains more slowly without it."""
    average: Literal["reduce", "gather"] = "reduce"
    """reduce: each rank adds up its devices, the link adds the ranks. gather: device by device in
    order, so bitwise the same for any number of ranks with equally many threads (one, unless
    OMP_NUM_THREADS says otherwise)."""
    deadline: float | None = None
    """Seconds without an exchange after which a rank counts as hanging and the job ends, with its
    name; more than the longest local work takes. None: ranks may take as long as they like."""
    survive: bool = False
    """A device rank that dies does not end the job: the others go on without its devices. For Open
    MPI 5 under `mpirun --with-ft ulfm`."""

    def __post_init__(self) -> None:
        fits = self.deadline is None or 0 < self.deadline < math.inf
        _require(fits, "link.deadline", self.deadline, "above 0 and finite")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Scores."""

    every: int = 100
    """Rounds between scores; 0: only before the first and after the last round."""
    samples: int | None = None
    """Generated images per score. None: as many as are held out, at most 10,000."""
    metrics: tuple[Metric, ...] = ("frechet", "classes")
    """frechet: distance of feature statistics. classes: covered, and total variation to the data's;
    where the features are a classifier's. kid: kernel distance. prdc: precision, recall, density,
    coverage. For the last two, the features of `samples` real images go to all ranks."""
    inception_weights: str | None = None
    """File weights-inception-2015-12-05-6726825d.pth; with it, frechet is told as fid_inception,
    too. Minutes for a thousand images on a CPU core."""
    patience: int | None = None
    """Scores in a row without a better Fréchet distance, after which training ends. None: it goes
    on to the last round."""

    def __post_init__(self) -> None:
        _require(self.every >= 0, "evaluation.every", self.every, "at least 0")
        check_metrics("evaluation.metrics", self.metrics)
        least = 6 if "prdc" in self.metrics else 2  # five neighbours and oneself
        fits = self.samples is None or self.samples >= least
        _require(fits, "evaluation.samples", self.samples, f"at least {least}")
        fits = self.patience is None or self.patience >= 1
        _require(fits, "evaluation.patience", self.patience, "at least 1")
        fits = self.patience is None or self.every > 0
        right = "above 0 when evaluation.patience is given"
        _require(fits, "evaluation.every", self.every, right)


def check_metrics(key: str, metrics: tuple[str, ...]) -> None:
    """Raises UserError where `frechet`, by which generators are ranked, is missing."""
    right = "a list of different metrics that begins with 'frechet'"
    fits = metrics[:1] == ("frechet",) and len(set(metrics)) == len(metrics)
    _require(fits, key, list(metrics), right)


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What survives the job."""

    every: int = 100
    """Rounds between checkpoints; 0: only after the last round."""
    keep_last: int = 2
    """Checkpoints kept; older ones are deleted."""
    keep_best: bool = False
    """Keep that of the best score, too; every scored round then has a checkpoint."""
    minutes: float | None = None
    """Minutes, too, after which the next round ends with a checkpoint. None: rounds alone count."""

    def __post_init__(self) -> None:
        _require(self.every >= 0, "checkpoint.every", self.every, "at least 0")
        fits = self.minutes is None or 0 < self.minutes < math.inf
        _require(fits, "checkpoint.minutes", self.minutes, "above 0 and finite")
        _require(self.keep_last >= 1, "checkpoint.keep_last", self.keep_last, "at least 1")


@dataclass(frozen=True, kw_only=True)
class RecordConfig:
    """What is shown beside stats.jsonl."""

    tensorboard: bool = False
    """Write losses, scores, seconds and grids for TensorBoard, too, into the run directory."""
    grid_every: int = 0
    """Rounds between grids of samples, beside those that go with the scores; 0: those alone."""

    def __post_init__(self) -> None:
        _require(self.grid_every >= 0, "record.grid_every", self.grid_every, "at least 0")


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
        return self.training.non_finite == "skip" or self.algorithm.name == "dp_fedavg_gan"

    def __post_init__(self) -> None:
        if self.algorithm.name == "centralized":
            right = "'all' for centralized, which has no participants"
            policy = self.participation.policy
            _require(policy == "all", "participation.policy", policy, right)
        self._check_importance()
        self._check_steps()
        self._check_losses()
        if self.link.survive:
            fits = self.algorithm.name != "centralized"
            right = f"left out for {self.algorithm.name}, which has no device ranks"
            _require(fits, "link.survive", True, right)
            fits = self.algorithm.name != "dp_fedavg_gan" or self.algorithm.noise == 0
            right = "left out for dp_fedavg_gan: with fewer devices ε would be another"
            _require(fits, "link.survive", True, right)
        if self.link.route == "cuda":
            right = "'auto' or 'cuda' when link.route is 'cuda'"
            _require(self.training.device != "cpu", "training.device", self.training.device, right)
        self._check_wire()
        self._check_compute()

    def _check_wire(self) -> None:
        name, wire, precision = self.algorithm.name, self.link.wire_dtype, self.training.precision
        fits = (wire == "float64") == (precision == "float64")
        narrow = "" if precision == "float64" else ", or 'bfloat16' or 'float16'"
        right = f"{precision!r} as training.precision is{narrow}"
        _require(fits, "link.wire_dtype", wire, right)
        if wire == "float16":
            right = "'bfloat16' or 'float32' for {}, which float16 has no range for"
            fits = not self.algorithm.devices_keep_discriminator
            what = f"{name}'s gradients of single pixels"
            _require(fits, "link.wire_dtype", wire, right.format(what))
            fits = self.algorithm.moments != "averaged" or self.training.optimizer != "adam"
            what = "averaged moments, squares of gradients"
            _require(fits, "link.wire_dtype", wire, right.format(what))
            fits = name != "dp_fedavg_gan" or self.algorithm.noise == 0
            what = "clipped updates"
            _require(fits, "link.wire_dtype", wire, right.format(what))
        if self.link.error_feedback:
            fits = wire in ("bfloat16", "float16")
            right = "'bfloat16' or 'float16' when link.error_feedback is true"
            _require(fits, "link.wire_dtype", wire, right)
            right = f"left out for {name}, whose messages do not continue those of the round before"
            fits = name in ("ren", "fedgan", "fegan")
            _require(fits, "link.error_feedback", True, right)

    def _check_compute(self) -> None:
        training = self.training
        fits = training.autocast == "off" or training.precision == "float32"
        right = "'off' when training.precision is 'float64'"
        _require(fits, "training.autocast", training.autocast, right)
        fits = training.graphs != "on" or training.device != "cpu"
        right = "'auto' or 'cuda' when training.graphs is 'on'"
        _require(fits, "training.device", training.device, right)

    def _check_importance(self) -> None:
        if self.participation.policy != "importance":
            return
        name = self.algorithm.name
        why = {
            "mdgan": "whose devices send no models",
            "uagan": "whose devices send no models",
            "dp_fedavg_gan": "whose noise would not hide who is chosen",
        }
        right = f"another for {name}, {why.get(name, '')}"
        _require(name not in why, "participation.policy", "importance", right)
        fits = self.algorithm.preset != "ifl"
        right = "another for ifl, whose shares are only known after training"
        _require(fits, "participation.policy", "importance", right)

    def _check_steps(self) -> None:
        name, steps = self.algorithm.name, self.training.generator_steps
        own = self.algorithm.devices_train_generator or self.algorithm.devices_keep_discriminator
        right = f"left out for {name}, which says itself how often G steps"
        _require(steps is None or not own, "training.generator_steps", steps, right)
        steps = self.training.discriminator_steps
        fits = self.algorithm.preset != "fl_gan" or steps == 1
        right = "left out for fl_gan, whose algorithm.epochs say how many"
        _require(fits, "training.discriminator_steps", steps, right)

    def _check_losses(self) -> None:
        loss, mode, name = self.training.loss, self.algorithm.mode, self.algorithm.name
        probabilities = loss in ("nonsaturating", "saturating")
        fits = name != "uagan" or probabilities or mode in ("mean", "max")
        right = f"'mean' or 'max' when training.loss is {loss!r}, whose D gives no probability"
        _require(fits, "algorithm.mode", mode, right)
        norm = self.model.discriminator_norm
        fits = loss != "wgan-gp" or self.model.architecture != "dcgan" or norm == "none"
        right = "'none' for wgan-gp, whose penalty is for each image alone"
        _require(fits, "model.discriminator_norm", norm, right)

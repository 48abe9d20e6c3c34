"""Options of rounds, local steps, optimizers and computation."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from fedgan_mpi.config.options import check_listed, check_named
from fedgan_mpi.config.paths import set_expanded
from fedgan_mpi.config.require import chosen, require

RegularizerName = Literal["none", "gradient_penalty", "r1", "zero_centered", "lecam"]
_WEIGHTS = {"none": 0.0, "gradient_penalty": 10.0, "r1": 1.0, "zero_centered": 10.0, "lecam": 0.1}


@dataclass(frozen=True)
class Regularizer:
    """The regularizer of D, resolved."""

    name: RegularizerName
    weight: float
    interval: int = 1

    @property
    def is_penalty(self) -> bool:
        """Whether it is a penalty on D's gradient with respect to images."""
        return self.name in ("gradient_penalty", "r1", "zero_centered")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Rounds, steps, optimizers and computation."""

    rounds: int = 600
    """Communication rounds, T."""
    start: str | None = None
    """Start both networks from another run of the same networks: from the last checkpoint of a run
    directory, from a checkpoint, or from a generator file (.safetensors). A generator file has no
    D, so that D starts anew. Moments and random streams always start anew. None: new networks."""
    freeze_discriminator: int = 0
    """First layers of D that no step changes (FreezeD, arXiv:2002.10964), to adapt a D from
    training.start to few images. A layer is a module with parameters of its own, in the order of
    D.modules(); --dry-run names them. Fixed parameters are not sent in rounds."""
    discriminator_steps: int = 1
    """Local steps per participant and round, n_d. fedgan, fegan, fess_gda: on both networks;
    others: on D."""
    generator_steps: int | None = None
    """ren, dp_fedavg_gan, ensemble, centralized: server steps on G per round, n_g. None: 6 up to 16
    pixels (3 in the parallel schedule or with staleness, where D is older), else 1. mdgan and uagan
    always take one per round; fedgan, fegan and fess_gda take one with each step on D."""
    batch_size: int = 32
    """Images per local step. A device with fewer images uses all of them."""
    generator_batch_size: int | None = None
    """Generated images per server step. None: 32 up to 16 pixels, else 64. mdgan and uagan use
    batch_size instead."""
    accumulate: int = 1
    """Micro-batches per batch of a step on D or G. Their gradients are summed, so that large
    batches need less memory. The result equals a step on the whole batch, unless a network couples
    passes or images: by BatchNorm or by the spectral norm of sngan and resnet."""
    generator_lr: float | None = None
    """Learning rate of G. None: 3e-4 up to 16 pixels, else 5e-4."""
    discriminator_lr: float | None = None
    """Learning rate of D. None: 3e-4 up to 16 pixels, else 5e-4."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course of both learning rates over training.rounds. linear, cosine: down to 0 after the last
    round."""
    warmup_rounds: int = 0
    """First rounds, in which both learning rates rise linearly to their values."""
    betas: tuple[float, float] = (0.5, 0.999)
    """adam: decay rates of the first and second moment."""
    optimizer: str = "adam"
    """Optimizer of both networks, also an installed one or an import string. sgd has no
    momentum."""
    optimizer_options: dict[str, Any] = field(default_factory=dict, hash=False)
    """Own options of an optimizer that is not built in: keywords of its constructor."""
    loss: str | None = None
    """Adversarial loss, also an installed one or an import string. nonsaturating: G minimizes -log
    D(G(z)). saturating: G minimizes log(1 - D(G(z))). lsgan: least squares. hinge: hinge loss.
    wgan-gp: Wasserstein loss with gradient penalty. None: hinge up to 16 pixels, else
    nonsaturating, as always for uagan and ensemble."""
    loss_options: dict[str, Any] = field(default_factory=dict, hash=False)
    """Own options of a loss that is not built in: keywords of the function that makes it."""
    gradient_penalty: float = 10.0
    """wgan-gp: weight λ of the gradient penalty."""
    regularizer: RegularizerName = "none"
    """Regularizer of D. gradient_penalty: norm 1 of D's gradient between real and generated images,
    as in wgan-gp. r1: half the squared norm at real images. zero_centered: the squared norm at real
    images, as in UA-GAN. lecam: pulls logits towards moving averages (arXiv:2104.03310)."""
    regularizer_weight: float | None = None
    """Weight of the regularizer. None: 10 for gradient_penalty and zero_centered, 1 for r1, 0.1 for
    lecam."""
    regularizer_interval: int = 1
    """A penalty is added in every such step of D, times this number (StyleGAN2's lazy
    regularization)."""
    augment: tuple[str, ...] = ()
    """Augmentations of the images that D judges, real and generated, in every step; also installed
    ones or import strings. flip: left to right. color, translation, cutout: as in DiffAugment
    (arXiv:2006.10738)."""
    augment_options: dict[str, Any] = field(default_factory=dict, hash=False)
    """Own options of augmentations that are not built in: a table for each, by its name in
    training.augment, of keywords of its constructor."""
    augment_target: float = 0.0
    """0: each augmentation changes every image. Above 0: target of ADA (arXiv:2006.06676), which
    uses 0.6. The probability of each augmentation then starts at 0 and changes once a round. It
    rises if the mean sign of D's logits on real images exceeds the target, else it falls."""
    augment_images: int = 100_000
    """Real images of all devices in which that probability moves from 0 to 1."""
    non_finite: Literal["stop", "skip"] = "stop"
    """If the loss or update of a device is not finite. stop: the run ends after the round. skip:
    the device counts as absent. dp_fedavg_gan always skips."""
    precision: Literal["float32", "float64"] = "float32"
    """Number type of parameters and arithmetic. float64 is meant for tests of exactness."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Processor. auto: a GPU of the node if torch finds one, else the CPU. Ranks of a node are
    assigned its GPUs in turn."""

    autocast: Literal["off", "bfloat16"] = "off"
    """Number type of the networks' layers during training. Parameters, losses and moments keep
    training.precision. bfloat16 needs a GPU, or a CPU with avx512_bf16 or AMX."""
    memory_format: Literal["contiguous", "channels_last"] = "contiguous"
    """Memory layout of kernels and feature maps. channels_last suits GPUs with tensor cores and
    bfloat16. It also changes the order of parameters in messages."""
    tf32: bool = True
    """On a GPU, allow TF32 tensor cores, which round float32 factors to 10 bits."""
    graphs: Literal["auto", "on", "off"] = "auto"
    """On a GPU, capture optimizer steps as CUDA graphs and replay them. auto: if possible. on: end
    the run if impossible."""
    overlap: bool = True
    """Start the half of the next local step that needs only D while the server trains G. Results
    are bitwise the same either way."""
    pin: bool = True
    """If ranks outnumber the cores of a single machine, pin each rank to a core. Applies to serial
    rounds of all devices. Set to false if other programs use these cores."""

    # Properties, for code that runs after `choose_by_size` has replaced None.

    @property
    def server_steps(self) -> int:
        """`generator_steps`, n_g."""
        return chosen(self.generator_steps)

    @property
    def server_batch_size(self) -> int:
        """`generator_batch_size`."""
        return chosen(self.generator_batch_size)

    @property
    def rate_of_G(self) -> float:
        """`generator_lr`."""
        return chosen(self.generator_lr)

    @property
    def rate_of_D(self) -> float:
        """`discriminator_lr`."""
        return chosen(self.discriminator_lr)

    @property
    def loss_name(self) -> str:
        """`loss`."""
        return chosen(self.loss)

    @property
    def has_lr_schedule(self) -> bool:
        """Whether the learning rates change."""
        return self.lr_schedule != "constant" or self.warmup_rounds > 0

    def resolve_regularizer(self, loss_has_penalty: bool = False) -> Regularizer:
        """Return the regularizer with its weight.

        loss_has_penalty: a gradient penalty belongs to the loss.
        """
        if self.regularizer == "none" and loss_has_penalty:
            return Regularizer("gradient_penalty", self.gradient_penalty)
        weight = self.regularizer_weight
        weight = _WEIGHTS[self.regularizer] if weight is None else weight
        return Regularizer(self.regularizer, weight, self.regularizer_interval)

    def __post_init__(self) -> None:
        set_expanded(self, "start")
        check_named("training.optimizer", self.optimizer, self.optimizer_options)
        if self.loss is not None:
            check_named("training.loss", self.loss, self.loss_options)
        else:
            right = "left out when training.loss is"
            require(not self.loss_options, "training.loss_options", self.loss_options, right)
        check_listed("training.augment", self.augment, self.augment_options)
        target = self.augment_target
        require(0 <= target < 1, "training.augment_target", target, "from 0 to below 1")
        right = "0 when training.augment is empty"
        require(target == 0 or bool(self.augment), "training.augment_target", target, right)
        images = self.augment_images
        require(images >= 1, "training.augment_images", images, "at least 1")
        require(self.rounds >= 1, "training.rounds", self.rounds, "at least 1")
        layers = self.freeze_discriminator
        require(layers >= 0, "training.freeze_discriminator", layers, "at least 0")
        require(self.accumulate >= 1, "training.accumulate", self.accumulate, "at least 1")
        right = "1 when training.regularizer is 'lecam', whose averages need whole batches"
        valid = self.accumulate == 1 or self.regularizer != "lecam"
        require(valid, "training.accumulate", self.accumulate, right)
        valid = 0 <= self.warmup_rounds <= self.rounds
        right = "from 0 to training.rounds"
        require(valid, "training.warmup_rounds", self.warmup_rounds, right)
        for key in ("discriminator_steps", "generator_steps"):
            steps = getattr(self, key)
            require(steps is None or steps >= 0, f"training.{key}", steps, "at least 0")
        penalty = self.gradient_penalty
        require(0 <= penalty < math.inf, "training.gradient_penalty", penalty, "at least 0")
        weight = self.regularizer_weight
        valid = weight is None or (0 <= weight < math.inf and self.regularizer != "none")
        right = "at least 0, and left out when training.regularizer is 'none'"
        require(valid, "training.regularizer_weight", weight, right)
        interval = self.regularizer_interval
        right = "at least 1, and 1 when training.regularizer is not a penalty on gradients"
        valid = interval == 1 or (interval > 1 and self.resolve_regularizer().is_penalty)
        require(valid, "training.regularizer_interval", interval, right)
        for key in ("batch_size", "generator_batch_size"):
            size = getattr(self, key)
            valid = size is None or 1 <= size < 2**31
            require(valid, f"training.{key}", size, "from 1 to 2^31 - 1")
        for key in ("generator_lr", "discriminator_lr"):
            rate = getattr(self, key)
            valid = rate is None or 0 < rate <= 1e30
            require(valid, f"training.{key}", rate, "above 0 and at most 1e30")
        in_range = all(0 <= beta < 1 for beta in self.betas)
        require(in_range, "training.betas", list(self.betas), "two numbers from 0 to below 1")

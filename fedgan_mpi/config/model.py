"""Options of the generator and the discriminator."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from fedgan_mpi import plugins
from fedgan_mpi.config.require import chosen, require

Initialization = Literal["fan_in", "dcgan", "orthogonal"]
MIN_SIZE = 8
"""Smallest height and width of images, pixels."""
MAX_FEATURES = 2**16
"""Of z, and feature maps of a layer. Networks of such sizes fill the memory of any machine."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The generator G and the discriminator D."""

    architecture: str = "dcgan"
    """Networks, also installed ones or an import string. dcgan: DCGAN. sngan: residual networks
    with spectral normalization in D. resnet: the same with self-attention, for large images. All
    take images of any size from 8 pixels."""
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    """Own options of networks that are not built in: keywords of their build function."""
    size: int | None = None
    """Height and width of square images, pixels. None: read from the shards."""
    channels: int | None = None
    """Image channels. None: read from the shards."""
    nz: int = 100
    """Length of the latent vector z."""
    width: int | None = None
    """Feature maps of the layer next to the image, in G and D. The number doubles with each halving
    of the size, up to 16 times. None: 64, but 32 for dcgan up to 16 pixels."""
    discriminator_norm: Literal["batch", "none"] | None = None
    """dcgan: normalization in D. None: batch, but none up to 16 pixels, where a D with BatchNorm
    overpowers G after a few hundred rounds, and none for uagan and ensemble, whose G learns to
    deceive BatchNorm's running statistics."""
    conditional: bool = False
    """Condition both networks on the class: G by its input, in resnet by its BatchNorm, and D by
    projection. Needs labelled shards. Classes of generated images follow the label histogram of all
    devices."""
    ema: float | None = None
    """Decay per step of the exponential moving average of G, which is scored and exported. 0: no
    average. None: 0.998 up to 16 pixels, else 0.99."""
    ema_warmup: bool = True
    """After t steps of G, the decay is at most (1 + t) / (10 + t). The average then forgets the
    first steps, when G changes fast."""
    initialization: Initialization | None = None
    """Initial parameters. fan_in: torch's default, scaled by fan-in. dcgan: N(0, 0.02), suited to
    widths of 64 and more. orthogonal: orthogonal matrices, as in BigGAN. None: fan_in, for resnet
    orthogonal."""

    @property
    def is_built_in(self) -> bool:
        """Whether the networks are part of this program."""
        return plugins.is_built_in("model.architecture", self.architecture)

    @property
    def decay(self) -> float:
        """`ema`, after `choose_by_size` has replaced None."""
        return chosen(self.ema)

    @property
    def initialization_rule(self) -> Initialization:
        """`initialization` with None resolved."""
        return self.initialization or ("orthogonal" if self.architecture == "resnet" else "fan_in")

    def __post_init__(self) -> None:
        plugins.find("model.architecture", self.architecture)
        if self.is_built_in:
            right = f"left out for {self.architecture}; its options are model.width and others"
            require(not self.options, "model.options", self.options, right)
        else:
            right = f"left out for {self.architecture}, which has its own in model.options"
            for key in ("width", "discriminator_norm"):
                value = getattr(self, key)
                require(value is None, f"model.{key}", value, right)
            right = f"left out for {self.architecture}, which initializes its own parameters"
            kind = self.initialization
            require(kind in (None, "fan_in"), "model.initialization", kind, right)
        least = MIN_SIZE if self.is_built_in else 1
        valid = self.size is None or least <= self.size < 2**16
        require(valid, "model.size", self.size, f"from {least} to 2^16 - 1")
        valid = self.channels is None or 1 <= self.channels < 2**16
        require(valid, "model.channels", self.channels, "from 1 to 2^16 - 1")
        for key, number in (("nz", self.nz), ("width", 1 if self.width is None else self.width)):
            right = f"from 1 to {MAX_FEATURES}"
            require(1 <= number <= MAX_FEATURES, f"model.{key}", number, right)
        valid = self.ema is None or 0 <= self.ema < 1
        require(valid, "model.ema", self.ema, "from 0 to below 1")
        if self.architecture in ("sngan", "resnet"):
            right = f"left out for {self.architecture}, whose D has spectral normalization"
            norm = self.discriminator_norm
            require(norm is None, "model.discriminator_norm", norm, right)


def default_discriminator_norm(size: int | None) -> Literal["batch", "none"]:
    """Return the meaning of `discriminator_norm = None` at an image size."""
    return "none" if size is not None and size <= 16 else "batch"


def default_width(architecture: str, size: int) -> int:
    """Return the meaning of `width = None` at an image size."""
    return 32 if architecture == "dcgan" and size <= 16 else 64

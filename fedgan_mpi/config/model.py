"""The two networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedgan_mpi.config.require import require

NETWORK_SIZES = (16, 32, 64, 128)
"""Heights and widths, in pixels, that there are networks for."""
SNGAN_SIZES = (32, 64)


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
        require(self.nz >= 1, "model.nz", self.nz, "at least 1")
        require(self.width is None or self.width >= 1, "model.width", self.width, "at least 1")
        require(0 <= self.ema < 1, "model.ema", self.ema, "from 0 to below 1")
        if self.architecture == "sngan":
            right = "left out for sngan, whose D has spectral normalization"
            norm = self.discriminator_norm
            require(norm is None, "model.discriminator_norm", norm, right)

"""Properties of each algorithm that configurations and reports depend on.

One entry per file in `algorithms/`. Imports neither MPI nor torch, so that mistakes are reported
before slow imports.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class AlgorithmTraits:
    """Properties of one algorithm. The defaults describe `ren`."""

    keys: tuple[str, ...] = ()
    """Keys of the section [algorithm] that belong to it, besides `name` and `moments`."""
    preset: Literal["fl_gan", "ifl", "ua_gan"] | None = None
    """The only preset that it accepts."""
    shares: Literal["data", "uniform"] = "data"
    """Default of `algorithm.shares`."""
    has_devices: bool = True
    """Whether devices train. False: one process trains on all shards."""
    averages_networks: bool = True
    """Whether devices send trained networks unchanged, for the average. Averaged moments, error
    feedback and the participation policy `importance` need it."""
    devices_train_generator: bool = False
    """Whether devices train G. False: the server does."""
    devices_keep_discriminator: bool = False
    """Whether each device keeps its own D. False: all start a round from the server's D."""
    exchanges_images: bool = False
    """Whether server and devices exchange generated images and their gradients."""
    is_private: bool = False
    """Whether updates are clipped and noised, and ε is computed."""
    needs_classes: bool = False
    """Whether shards need labels. No preset needs them."""

    @property
    def mixes_discriminators(self) -> bool:
        """Whether G trains against a mixture of the devices' D's."""
        return "mode" in self.keys

    @property
    def sets_generator_steps(self) -> bool:
        """Whether the algorithm determines the steps on G per round."""
        return self.devices_train_generator or self.exchanges_images


TRAITS = {
    "ren": AlgorithmTraits(
        keys=("schedule", "staleness", "shares", "batchnorm", "proximal", "control_variates")
    ),
    "fedgan": AlgorithmTraits(
        keys=(
            "shares",
            "batchnorm",
            "preset",
            "local_update",
            "epochs",
            "proximal",
            "control_variates",
        ),
        preset="fl_gan",
        devices_train_generator=True,
    ),
    "mdgan": AlgorithmTraits(
        keys=("epochs", "fake_batches"),
        shares="uniform",
        averages_networks=False,
        devices_keep_discriminator=True,
        exchanges_images=True,
    ),
    "uagan": AlgorithmTraits(
        keys=("shares", "preset", "mode", "sharpness"),
        preset="ua_gan",
        averages_networks=False,
        devices_keep_discriminator=True,
        exchanges_images=True,
    ),
    "ensemble": AlgorithmTraits(
        keys=("schedule", "shares", "mode", "sharpness"),
        averages_networks=False,
        devices_keep_discriminator=True,
    ),
    "dp_fedavg_gan": AlgorithmTraits(
        keys=("batchnorm", "clip", "noise", "epsilon_budget", "delta", "proximal"),
        shares="uniform",
        averages_networks=False,
        is_private=True,
    ),
    "fegan": AlgorithmTraits(
        keys=("batchnorm", "preset", "local_update", "kl_sign", "proximal", "control_variates"),
        preset="ifl",
        devices_train_generator=True,
        needs_classes=True,
    ),
    "fess_gda": AlgorithmTraits(
        keys=("shares", "batchnorm", "smoothing", "smoothing_rate", "proximal"),
        devices_train_generator=True,
    ),
    "centralized": AlgorithmTraits(has_devices=False, averages_networks=False),
}
"""Algorithm -> its traits."""

KNOWN_BY = {
    key: [name for name, traits in TRAITS.items() if key in traits.keys]
    for traits in TRAITS.values()
    for key in traits.keys
}
"""Key -> the algorithms that it belongs to."""

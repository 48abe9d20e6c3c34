"""What each algorithm is, as far as configurations and records ask: an entry for each file in
`algorithms/`. Knows neither MPI nor torch, so that mistakes are told before they are loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class AlgorithmTraits:
    """One algorithm. The defaults are those of the paper's own."""

    keys: tuple[str, ...] = ()
    """Of the section [algorithm], beside `name` and `moments`; to others they must not be given."""
    preset: Literal["fl_gan", "ifl"] | None = None
    """The one that it has."""
    shares: Literal["data", "uniform"] = "data"
    """A participant's share where `algorithm.shares` does not say."""
    has_devices: bool = True
    """Or one process has all shards."""
    averages_networks: bool = True
    """Devices send what they trained, to be averaged: so can their moments be; what rounding took
    can be sent with the next ones; and how far they went says whom to draw."""
    devices_train_generator: bool = False
    """Or the server does."""
    devices_keep_discriminator: bool = False
    """Or all train the same one, the server's."""
    is_private: bool = False
    """Updates are clipped and noised, and ε is told."""
    needs_classes: bool = False
    """Shards must have labels, unless a preset does without."""

    @property
    def sets_generator_steps(self) -> bool:
        """Whether it says itself how often G steps."""
        return self.devices_train_generator or self.devices_keep_discriminator


TRAITS = {
    "ren": AlgorithmTraits(keys=("schedule", "shares", "batchnorm")),
    "fedgan": AlgorithmTraits(
        keys=("shares", "batchnorm", "preset", "local_update", "epochs"),
        preset="fl_gan",
        devices_train_generator=True,
    ),
    "mdgan": AlgorithmTraits(
        keys=("epochs", "fake_batches"),
        shares="uniform",
        averages_networks=False,
        devices_keep_discriminator=True,
    ),
    "uagan": AlgorithmTraits(
        keys=("shares", "mode", "sharpness"),
        averages_networks=False,
        devices_keep_discriminator=True,
    ),
    "dp_fedavg_gan": AlgorithmTraits(
        keys=("batchnorm", "clip", "noise", "epsilon_budget", "delta"),
        shares="uniform",
        averages_networks=False,
        is_private=True,
    ),
    "fegan": AlgorithmTraits(
        keys=("batchnorm", "preset", "local_update", "kl_sign"),
        preset="ifl",
        devices_train_generator=True,
        needs_classes=True,
    ),
    "centralized": AlgorithmTraits(has_devices=False, averages_networks=False),
}

KNOWN_BY = {
    key: [name for name, traits in TRAITS.items() if key in traits.keys]
    for traits in TRAITS.values()
    for key in traits.keys
}
"""Key -> the algorithms that know it."""

"""Five devices with shards of unequal size, and participation policies for them."""

from __future__ import annotations

from collections.abc import Sequence

from fedgan_mpi.config import ParticipationConfig, WirelessConfig
from fedgan_mpi.federation.participation import Participation

IMAGES = [10, 40, 30, 20, 60]
HISTOGRAMS = [[10, 0], [0, 40], [20, 10], [10, 10], [0, 60]]
NO_FADING = WirelessConfig(fading="none")


def make_participation(
    config: ParticipationConfig,
    *,
    shares: str = "data",
    seed: int = 0,
    histograms: Sequence[Sequence[int]] = HISTOGRAMS,
    wireless: WirelessConfig | None = None,
) -> Participation:
    """Return the participation of one device per histogram."""
    images = [sum(histogram) for histogram in histograms]
    return Participation(
        config,
        images=images,
        batch_sizes=[min(32, n) for n in images],
        shares=shares,
        seed=seed,
        histograms=histograms,
        wireless=wireless,
    )


def make_policy(policy: str, count: int | None = 2, **options) -> Participation:
    return make_participation(ParticipationConfig(policy=policy, count=count), **options)


def remove_distance(participation: Participation) -> None:
    """Give all devices the same path loss."""
    participation.cell.path_loss_db[:] = 110.0


def fix_fading(participation: Participation) -> None:
    """Give all rounds the uplink rates of round 0."""
    rates = participation.cell.faded_uplink_rates(0, 0, participation.count)
    participation.cell.faded_uplink_rates = lambda seed, t, count: rates

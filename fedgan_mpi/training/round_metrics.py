"""What all ranks noted in a round, added up for every rank, and told as its line."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedgan_mpi.algorithms.base import Algorithm, LocalMetrics
from fedgan_mpi.errors import AgreedError
from fedgan_mpi.federation.rank import RankState
from fedgan_mpi.wireless.cost import payload_sizes

_OF_RANK = 8  # numbers that each rank notes of itself


@dataclass(frozen=True, kw_only=True)
class RoundMetrics:
    """What all ranks noted in a round, the same on every rank."""

    d_loss: dict[int, float]
    """Of each device that took steps."""
    g_loss: dict[int, float]
    """The same, or of the server, 0."""
    skipped: list[int]
    """Participants that counted as absent: what they computed was not finite."""
    update_norms: dict[int, float]
    """Of participants, where they are drawn by it."""
    seconds_of_device: dict[int, float]
    """Of participants, each by itself."""
    broken: bool
    """The server's networks are not finite, or those that a device keeps."""
    images: int
    """Real ones that devices have drawn."""
    seconds_downlink: float
    seconds_local: float
    seconds_uplink: float
    seconds_server: float
    bytes_down: int
    """Of one participant."""
    bytes_up: int


def allreduce_metrics(
    rank_state: RankState,
    t: int,
    metrics: LocalMetrics,
    vote: NDArray[np.float64],
    meanwhile: Callable[[], None],
) -> RoundMetrics:
    """Collective. Every rank's notes of a round, on every rank; `vote` becomes its sum.

    Each number has one rank that knows it, so the sum over ranks is exact. All wait for this:
    therefore one array, and lists where it is taken apart.
    """
    link, players = rank_state.link, rank_state.participation.devices + 1
    numbers = np.zeros(7 * players + _OF_RANK * link.size + vote.size)
    # Of the server and each device: whether there is a loss of D, which, the same of G, …
    for start, losses in ((0, metrics.d_loss), (2 * players, metrics.g_loss)):
        for k, loss in losses.items():
            numbers[start + k], numbers[start + players + k] = 1.0, loss
    for k in metrics.skipped:
        numbers[4 * players + k] = 1.0
    for start, noted in ((5, metrics.update_norms), (6, metrics.seconds_of_device)):
        for k, number in noted.items():
            numbers[start * players + k] = number
    mine = 7 * players + _OF_RANK * link.rank
    numbers[mine : mine + _OF_RANK] = (
        rank_state.images_drawn - metrics.images_drawn_before,
        link.bytes_down,
        link.bytes_up,
        link.seconds_down,
        link.seconds_up,
        metrics.seconds_local,
        metrics.seconds_server,
        not rank_state.is_finite(t),
    )
    numbers[numbers.size - vote.size :] = vote

    total = link.sum(numbers, meanwhile=meanwhile)
    vote[:] = total[total.size - vote.size :]
    told = total[: total.size - vote.size].tolist()
    has_d, d_loss, has_g, g_loss, skipped, norms, seconds = (
        told[start : start + players] for start in range(0, 7 * players, players)
    )
    images, down, up, seconds_down, seconds_up, local, server, broken = (
        told[7 * players + n :: _OF_RANK] for n in range(_OF_RANK)
    )
    return RoundMetrics(
        d_loss={k: d_loss[k] for k in range(players) if has_d[k]},
        g_loss={k: g_loss[k] for k in range(players) if has_g[k]},
        skipped=[k for k in range(players) if skipped[k]],
        update_norms={k: norms[k] for k in range(players) if norms[k]},
        seconds_of_device={k: seconds[k] for k in range(players) if seconds[k]},
        broken=any(broken),
        images=int(sum(images)),
        # Who waits in a verb for others counts that too; who came last did not wait.
        seconds_downlink=min(seconds_down),
        seconds_uplink=min(seconds_up),
        seconds_local=max(local),
        seconds_server=max(server),
        bytes_down=int(max(down)),
        bytes_up=int(max(up)),
    )


def check_finite(whole: RoundMetrics, t: int, participants: int) -> None:
    """Raises AgreedError on every rank where a loss or the networks are not, or no device is left
    whose update is."""
    remedy = "start anew with lower learning rates, or look at the shards"
    for name, losses in (("d_loss", whole.d_loss), ("g_loss", whole.g_loss)):
        for k, loss in losses.items():
            if not math.isfinite(loss):
                who = f"device {k}" if k else "the server"
                raise AgreedError(f"{name} of {who} is {loss} in round {t + 1}; {remedy}")
    if len(whole.skipped) == participants:
        raise AgreedError(f"no device's update is finite in round {t + 1}; {remedy}")
    if whole.broken:
        raise AgreedError(f"parameters are not finite after round {t + 1}; {remedy}")


def round_stats(
    algorithm: Algorithm,
    t: int,
    shares: dict[int, float],
    whole: RoundMetrics,
    seconds: float,
    wireless_seconds: float | None,
    images_seen: int,
) -> dict[str, Any]:
    """A round's line of stats.jsonl. shares: of its participants; images_seen: of all rounds so
    far."""
    rank_state, flat = algorithm.rank_state, algorithm.flat
    size = rank_state.link.wire.nbytes(flat.phi) // flat.phi.numel()
    sizes = payload_sizes(
        rank_state.config, rank_state.pair.image_shape, flat.theta.numel(), flat.phi.numel()
    )
    payload = algorithm.payload_of_round(t, sizes)
    participants = len(shares)
    return {
        "round": t + 1,
        "participants": list(shares),
        **({"skipped": whole.skipped} if whole.skipped else {}),
        "d_loss": _mean(whole.d_loss, shares),
        "g_loss": _mean(whole.g_loss, {0: 1.0, **shares}),
        "seconds": seconds,
        "seconds_downlink": whole.seconds_downlink,
        "seconds_local": whole.seconds_local,
        "seconds_uplink": whole.seconds_uplink,
        "seconds_server": whole.seconds_server,
        **({} if wireless_seconds is None else {"wireless_seconds": wireless_seconds}),
        "bytes_down": payload.down * size * participants,
        "bytes_up": payload.up * size * participants,
        # BatchNorm statistics, averaged moments and classes of fakes, beside them.
        "bytes_down_other": (whole.bytes_down - payload.down * size) * participants,
        "bytes_up_other": (whole.bytes_up - payload.up * size) * participants,
        "images_seen": images_seen,
    }


def _mean(losses: dict[int, float], shares: dict[int, float]) -> float | None:
    """Weighted by shares over those who have one; None where nobody has."""
    if not losses:
        return None
    total = math.fsum(shares[k] for k in losses)
    return math.fsum(shares[k] * loss for k, loss in losses.items()) / total

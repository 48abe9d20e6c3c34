"""What all ranks noted in a round, added up for every rank, and told as its line."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedgan_mpi.algorithms.base import Algorithm, Ledger
from fedgan_mpi.algorithms.plan import payload_sizes
from fedgan_mpi.cluster.node import Node
from fedgan_mpi.errors import AgreedError

_OF_RANK = 8  # numbers that each rank notes of itself


@dataclass(frozen=True, kw_only=True)
class Whole:
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


def add_up(
    node: Node,
    t: int,
    ledger: Ledger,
    vote: NDArray[np.float64],
    meanwhile: Callable[[], None],
) -> Whole:
    """Collective. Every rank's notes of a round, on every rank; `vote` becomes its sum.

    Each number has one rank that knows it, so the sum over ranks is exact. All wait for this:
    therefore one array, and lists where it is taken apart.
    """
    link, players = node.link, node.participation.devices + 1
    numbers = np.zeros(7 * players + _OF_RANK * link.size + vote.size)
    # Of the server and each device: whether there is a loss of D, which, the same of G, …
    for start, losses in ((0, ledger.d_loss), (2 * players, ledger.g_loss)):
        for k, loss in losses.items():
            numbers[start + k], numbers[start + players + k] = 1.0, loss
    for k in ledger.skipped:
        numbers[4 * players + k] = 1.0
    for start, noted in ((5, ledger.update_norms), (6, ledger.seconds_of_device)):
        for k, number in noted.items():
            numbers[start * players + k] = number
    mine = 7 * players + _OF_RANK * link.rank
    numbers[mine : mine + _OF_RANK] = (
        node.images_drawn - ledger.images_drawn_before,
        link.bytes_down,
        link.bytes_up,
        link.seconds_down,
        link.seconds_up,
        ledger.seconds_local,
        ledger.seconds_server,
        not node.is_finite(t),
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
    return Whole(
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


def check_finite(whole: Whole, t: int, participants: int) -> None:
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


def line_of_round(
    algorithm: Algorithm,
    t: int,
    shares: dict[int, float],
    whole: Whole,
    seconds: float,
    wireless_seconds: float | None,
    images_seen: int,
) -> dict[str, Any]:
    """A round's line of stats.jsonl. shares: of its participants; images_seen: of all rounds so
    far."""
    node, flat = algorithm.node, algorithm.flat
    size = node.link.wire.nbytes(flat.phi) // flat.phi.numel()
    sizes = payload_sizes(node.config, node.pair.image_shape, flat.theta.numel(), flat.phi.numel())
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

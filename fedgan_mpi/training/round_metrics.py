"""Metrics of a round: the all-reduce over ranks, the check for finite numbers, the line of
stats.jsonl."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedgan_mpi.algorithms.base import Algorithm
from fedgan_mpi.algorithms.local_metrics import LocalMetrics
from fedgan_mpi.errors import AgreedError
from fedgan_mpi.federation.rank import RankState
from fedgan_mpi.hardware.memory import peak_bytes_host
from fedgan_mpi.run.stats import PEAK_BYTES_GPU, PEAK_BYTES_HOST, SECONDS_OF_DEVICE
from fedgan_mpi.wireless.cost import payload_sizes

_PER_RANK = 11  # numbers that each rank contributes


@dataclass(frozen=True, kw_only=True)
class RoundMetrics:
    """Metrics of all ranks, the same on every rank."""

    d_loss: dict[int, float]
    """Device -> mean loss of D, for devices that took steps."""
    g_loss: dict[int, float]
    """Device -> mean loss of G; 0 is the server."""
    skipped: list[int]
    """Participants whose loss or update was not finite; they counted as absent."""
    update_norms: dict[int, float]
    """Participant -> norm of its update, if the participation policy depends on it."""
    seconds_of_device: dict[int, float]
    """Participant -> seconds of its local round."""
    not_finite: bool
    """Whether the networks of the server, or those that a device keeps, are not finite."""
    images: int
    """Real images that devices drew."""
    seconds_downlink: float
    seconds_local: float
    seconds_uplink: float
    seconds_server: float
    bytes_down: int
    """Per participant."""
    bytes_up: int
    peak_bytes_host: int
    """Of the rank with the most, since its start."""
    peak_bytes_gpu: int
    """Allocated by torch, on the rank with the most; 0 without a GPU."""
    logged: dict[str, dict[int, float]]
    """Name -> device -> value, from `Algorithm.log`; device 0 is the server."""


def allreduce_metrics(
    rank_state: RankState,
    t: int,
    metrics: LocalMetrics,
    flags: NDArray[np.float64],
    overlap: Callable[[], None],
) -> RoundMetrics:
    """Sum every rank's metrics of a round; `flags` is overwritten with its sum. Collective.

    Each number is set by one rank, so the sum is exact. All ranks wait for this all-reduce:
    therefore it is one array. `overlap` is called after this rank's numbers are sent.
    """
    link, players = rank_state.link, rank_state.participation.devices + 1
    numbers = np.zeros(7 * players + _PER_RANK * link.size + flags.size)
    # Seven blocks, each with one entry for the server and one per device. Blocks 0 and 2 are 1 if
    # the loss of D or G in blocks 1 and 3 exists. Block 4 is 1 if the device is skipped. Block 5
    # has the norm of its update, and block 6 its seconds.
    for start, losses in ((0, metrics.d_loss), (2 * players, metrics.g_loss)):
        for k, loss in losses.items():
            numbers[start + k], numbers[start + players + k] = 1.0, loss
    for k in metrics.skipped:
        numbers[4 * players + k] = 1.0
    for block, values in ((5, metrics.update_norms), (6, metrics.seconds_of_device)):
        for k, number in values.items():
            numbers[block * players + k] = number
    torch_device = rank_state.pair.torch_device
    own = 7 * players + _PER_RANK * link.rank
    numbers[own : own + _PER_RANK] = (
        rank_state.images_drawn - metrics.images_drawn_before,
        link.bytes_down,
        link.bytes_up,
        link.seconds_down,
        link.seconds_up,
        metrics.seconds_local,
        metrics.seconds_server,
        not rank_state.is_finite(t),
        len(metrics.logged),
        peak_bytes_host(),
        torch.cuda.max_memory_allocated(torch_device) if torch_device.type == "cuda" else 0,
    )
    numbers[numbers.size - flags.size :] = flags

    total = link.sum(numbers, overlap=overlap)
    flags[:] = total[total.size - flags.size :]
    sums = total[: total.size - flags.size].tolist()
    has_d, d_loss, has_g, g_loss, skipped, norms, seconds = (
        sums[start : start + players] for start in range(0, 7 * players, players)
    )
    images, down, up, seconds_down, seconds_up, local, server, not_finite, logs, host, gpu = (
        sums[7 * players + n :: _PER_RANK] for n in range(_PER_RANK)
    )
    return RoundMetrics(
        d_loss={k: d_loss[k] for k in range(players) if has_d[k]},
        g_loss={k: g_loss[k] for k in range(players) if has_g[k]},
        skipped=[k for k in range(players) if skipped[k]],
        update_norms={k: norms[k] for k in range(players) if norms[k]},
        seconds_of_device={k: seconds[k] for k in range(players) if seconds[k]},
        not_finite=any(not_finite),
        images=int(sum(images)),
        # The minimum over ranks, which excludes waiting.
        seconds_downlink=min(seconds_down),
        seconds_uplink=min(seconds_up),
        seconds_local=max(local),
        seconds_server=max(server),
        bytes_down=int(max(down)),
        bytes_up=int(max(up)),
        peak_bytes_host=int(max(host)),
        peak_bytes_gpu=int(max(gpu)),
        # A second exchange, only in rounds in which an algorithm has logged something.
        logged=_merge(link.allgather(metrics.logged)) if any(logs) else {},
    )


def _merge(of_ranks: list[dict[str, dict[int, float]]]) -> dict[str, dict[int, float]]:
    merged: dict[str, dict[int, float]] = {}
    for logged in of_ranks:
        for name, values in logged.items():
            merged.setdefault(name, {}).update(values)
    return {name: dict(sorted(values.items())) for name, values in sorted(merged.items())}


def check_finite(metrics: RoundMetrics, t: int, participants: int) -> None:
    """Raise AgreedError on every rank if a loss or the networks are not finite, or if every
    participant was skipped."""
    remedy = "start anew with lower learning rates, or look at the shards"
    for name, losses in (("d_loss", metrics.d_loss), ("g_loss", metrics.g_loss)):
        for k, loss in losses.items():
            if not math.isfinite(loss):
                player = f"device {k}" if k else "the server"
                raise AgreedError(f"{name} of {player} is {loss} in round {t + 1}; {remedy}")
    if len(metrics.skipped) == participants:
        raise AgreedError(f"no device's update is finite in round {t + 1}; {remedy}")
    if metrics.not_finite:
        raise AgreedError(f"parameters are not finite after round {t + 1}; {remedy}")


def round_stats(
    algorithm: Algorithm,
    t: int,
    shares: dict[int, float],
    metrics: RoundMetrics,
    seconds: float,
    wireless_seconds: float | None,
    images_seen: int,
) -> dict[str, Any]:
    """Return the line of stats.jsonl for round t.

    shares: of the participants. images_seen: of all rounds so far.
    """
    rank_state, flat = algorithm.rank_state, algorithm.flat
    size = rank_state.link.wire.nbytes(flat.phi) // flat.phi.numel()
    image_shape = rank_state.pair.image_shape
    sizes = payload_sizes(rank_state.config, image_shape, flat.theta.numel(), flat.phi.numel())
    payload = algorithm.payload_of_round(t, sizes)
    # Without a formula, the bytes are those that the link has counted.
    down = metrics.bytes_down if payload is None else payload.down * size
    up = metrics.bytes_up if payload is None else algorithm.bytes_up(payload)
    participants = len(shares)
    adaptive = rank_state.pair.adaptive
    logged = {name: _mean(of, {0: 1.0, **shares}) for name, of in metrics.logged.items()}
    return {
        "round": t + 1,
        "participants": list(shares),
        **({"skipped": metrics.skipped} if metrics.skipped else {}),
        "d_loss": _mean(metrics.d_loss, shares),
        "g_loss": _mean(metrics.g_loss, {0: 1.0, **shares}),
        "seconds": seconds,
        "seconds_downlink": metrics.seconds_downlink,
        "seconds_local": metrics.seconds_local,
        "seconds_uplink": metrics.seconds_uplink,
        "seconds_server": metrics.seconds_server,
        SECONDS_OF_DEVICE: [round(metrics.seconds_of_device.get(k, 0.0), 6) for k in shares],
        **({} if wireless_seconds is None else {"wireless_seconds": wireless_seconds}),
        "bytes_down": down * participants,
        "bytes_up": up * participants,
        # Beyond the formula: BatchNorm statistics, averaged moments, classes of fakes.
        "bytes_down_other": (metrics.bytes_down - down) * participants,
        "bytes_up_other": (metrics.bytes_up - up) * participants,
        "images_seen": images_seen,
        PEAK_BYTES_HOST: metrics.peak_bytes_host,
        **({PEAK_BYTES_GPU: metrics.peak_bytes_gpu} if metrics.peak_bytes_gpu else {}),
        **({} if adaptive is None else {"augment_probability": adaptive.p}),
        **logged,
    }


def _mean(losses: dict[int, float], shares: dict[int, float]) -> float | None:
    """The mean of existing losses, weighted by shares; None for no losses."""
    if not losses:
        return None
    total = math.fsum(shares[k] for k in losses)
    return math.fsum(shares[k] * loss for k, loss in losses.items()) / total

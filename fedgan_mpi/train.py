"""The loop over rounds: round, record, score, checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedgan_mpi.algorithms import ALGORITHMS
from fedgan_mpi.algorithms.base import Algorithm, Ledger, Sizes
from fedgan_mpi.cluster.link import AgreedError, Link
from fedgan_mpi.cluster.node import Node, build_node, build_pair
from fedgan_mpi.cluster.placement import choose_torch_device, set_threads
from fedgan_mpi.config import Config
from fedgan_mpi.errors import UserError
from fedgan_mpi.keep import Keeper
from fedgan_mpi.run.checkpoint import load_checkpoint, newest_checkpoint
from fedgan_mpi.run.record import Record
from fedgan_mpi.start import Start


def train(link: Link, start: Start) -> None:
    """Collective. Train to the last round and leave a whole run directory behind."""
    began = time.perf_counter()
    config = start.config
    torch_device = choose_torch_device(config, link)
    set_threads(config, link)
    manifest = start.manifest
    images, histograms = manifest.images, manifest.histograms
    pooled = [sum(counts) for counts in zip(*histograms, strict=True)]
    if config.algorithm.name == "centralized":
        images, histograms = [sum(images)], [pooled]
    pair = build_pair(config, manifest.image_shape, torch_device, histogram=pooled)
    node = build_node(link, config, pair, start.shards, images, histograms)
    algorithm = ALGORITHMS[config.algorithm.name](node)

    progress: dict[str, Any] = {
        "images_seen": 0,
        "scores": [],  # the last ones
        "best": None,
        "scores_since_best": 0,
        "ended_early": False,
    }
    done = 0
    if start.resume:
        done, progress = _resume(node, start)
        if done > config.training.rounds:
            right = f"at least {done}, the rounds that {start.run} has"
            raise AgreedError(f"training.rounds is {config.training.rounds}, but must be {right}")
    record = Record(
        start.run if link.is_server else None,
        rounds=config.training.rounds,
        done=done,
        scored=max((score["round"] for score in progress["scores"]), default=0),
        tensorboard=config.record.tensorboard,
    )
    keeper = Keeper(node, start, record, progress)
    keeper.begin(done)
    for t in range(done, keeper.last):
        stats = play_round(algorithm, t, progress, keeper.meanwhile)
        record.round(stats)
        check_finite(stats, start)
        if not keeper.after(t + 1):
            break

    record.close()
    keeper.finish(time.perf_counter() - began)
    link.barrier()


def play_round(
    algorithm: Algorithm,
    t: int,
    progress: dict[str, Any],
    meanwhile: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Collective. One round, and its line of stats.jsonl, the same on every rank.

    meanwhile: what a rank does with its part of the round behind it, before it waits for others.
    """
    node, link = algorithm.node, algorithm.link
    algorithm.ledger = Ledger()
    link.reset_counters()
    start = time.perf_counter()
    algorithm.round(t)
    meanwhile()
    whole = _share(node, algorithm.ledger)
    seconds = time.perf_counter() - start

    flat, size = algorithm.flat, algorithm.flat.phi.element_size()
    sizes = payload_sizes(node.config, node.pair.image_shape, flat.theta.numel(), flat.phi.numel())
    payload = algorithm.payload_of_round(t, sizes)
    progress["images_seen"] = whole.images_seen
    shares = node.participation.shares(t)
    participants = len(shares)
    return {
        "round": t + 1,
        "participants": list(shares),
        "d_loss": _mean(whole.d_loss, shares),
        "g_loss": _mean(whole.g_loss, {0: 1.0, **shares}),
        "seconds": seconds,
        # A rank that waits in a verb for others counts that too; who came last did not wait.
        "seconds_downlink": whole.seconds_downlink,
        "seconds_local": whole.seconds_local,
        "seconds_uplink": whole.seconds_uplink,
        "seconds_server": whole.seconds_server,
        "bytes_down": payload.down * size * participants,
        "bytes_up": payload.up * size * participants,
        # BatchNorm statistics, averaged moments and classes of fakes, beside them.
        "bytes_down_other": (whole.bytes_down - payload.down * size) * participants,
        "bytes_up_other": (whole.bytes_up - payload.up * size) * participants,
        "images_seen": progress["images_seen"],
    }


@dataclass(frozen=True, kw_only=True)
class Whole:
    """What all ranks noted in a round, the same on every rank."""

    d_loss: dict[int, float]
    """Of each device that took steps."""
    g_loss: dict[int, float]
    """The same, or of the server, 0."""
    images_seen: int
    """Real images that devices have drawn since the run began."""
    seconds_downlink: float
    seconds_local: float
    seconds_uplink: float
    seconds_server: float
    bytes_down: int
    """Of one participant."""
    bytes_up: int


def _share(node: Node, ledger: Ledger) -> Whole:
    """Collective. Every rank's notes of a round, on every rank.

    Each number has one rank that knows it, so the sum over ranks is exact.
    """
    link = node.link
    # For D and for G: who has a loss, and which.
    losses = np.zeros((2, 2, node.participation.devices + 1))
    for player, noted in enumerate((ledger.d_loss, ledger.g_loss)):
        for k, loss in noted.items():
            losses[player, :, k] = 1.0, loss
    ranks = np.zeros((link.size, 7))
    drawn = sum(device.batches.drawn for device in node.devices)
    ranks[link.rank, :3] = drawn, link.bytes_down, link.bytes_up
    ranks[link.rank, 3:5] = link.seconds_down, link.seconds_up
    ranks[link.rank, 5:] = ledger.seconds_local, ledger.seconds_server

    numbers = link.sum(np.concatenate([losses.ravel(), ranks.ravel()]))
    d_loss, g_loss = (
        {k: loss for k, (there, loss) in enumerate(table.T.tolist()) if there}
        for table in numbers[: losses.size].reshape(losses.shape)
    )
    images, down, up, *seconds = numbers[losses.size :].reshape(ranks.shape).T
    return Whole(
        d_loss=d_loss,
        g_loss=g_loss,
        images_seen=int(images.sum()),
        seconds_downlink=float(seconds[0].min()),
        seconds_uplink=float(seconds[1].min()),
        seconds_local=float(seconds[2].max()),
        seconds_server=float(seconds[3].max()),
        bytes_down=int(down.max()),
        bytes_up=int(up.max()),
    )


def _mean(losses: dict[int, float], shares: dict[int, float]) -> float | None:
    """Weighted by shares over those who have one; None where nobody has."""
    if not losses:
        return None
    total = math.fsum(shares[k] for k in losses)
    return math.fsum(shares[k] * loss for k, loss in losses.items()) / total


def payload_sizes(config: Config, image_shape: tuple[int, int, int], theta: int, phi: int) -> Sizes:
    """What an algorithm's payload is computed from; theta, phi: parameters of G and D."""
    batch = config.training.batch_size
    return Sizes(theta=theta, phi=phi, batch=batch, fakes=batch * math.prod(image_shape))


def check_finite(stats: dict[str, Any], start: Start) -> None:
    """Raises AgreedError on every rank where a loss is not a number."""
    for key in ("d_loss", "g_loss"):
        if stats[key] is not None and not math.isfinite(stats[key]):
            round = stats["round"]
            raise AgreedError(
                f"{key} is {stats[key]} in round {round} of {start.run}; "
                "start anew with lower learning rates, or look at the shards"
            )


def _resume(node: Node, start: Start) -> tuple[int, dict[str, Any]]:
    checkpoint = node.link.from_server(lambda: newest_checkpoint(start.run))
    problem: str | None = None
    loaded: tuple[int, dict[str, Any]] = (0, {})
    try:
        loaded = load_checkpoint(node, checkpoint)
    except UserError as error:
        problem = str(error)
    node.link.agree(problem)
    return loaded

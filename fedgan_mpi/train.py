"""The loop over rounds: round, record, score, checkpoint."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedgan_mpi.algorithms import ALGORITHMS
from fedgan_mpi.algorithms.base import Algorithm, Ledger
from fedgan_mpi.cluster.link import AgreedError, Link
from fedgan_mpi.cluster.node import Node, build_node, build_pair
from fedgan_mpi.cluster.placement import choose_torch_device, set_threads
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
    pair = build_pair(config, start.manifest.image_shape, torch_device)
    images = (
        start.manifest.images
        if config.algorithm.name != "centralized"
        else [sum(start.manifest.images)]
    )
    node = build_node(link, config, pair, start.shards, images)
    algorithm = ALGORITHMS[config.algorithm.name](node)

    progress: dict[str, Any] = {"images_seen": 0, "best": None, "scores": []}
    done = 0
    if start.resume:
        done, progress = _resume(node, start)
        if done > config.training.rounds:
            right = f"at least {done}, the rounds that {start.run} has"
            raise AgreedError(f"training.rounds is {config.training.rounds}, but must be {right}")
    record = Record(start.run if link.is_server else None, rounds=config.training.rounds, done=done)
    keeper = Keeper(node, start, record, progress)
    if not start.resume:
        keeper.after(0, config.training.rounds)

    for t in range(done, config.training.rounds):
        stats = play_round(algorithm, t, progress)
        record.round(stats)
        check_finite(stats, start)
        keeper.after(t + 1, config.training.rounds)

    record.close()
    keeper.finish(time.perf_counter() - began)
    link.barrier()


def play_round(algorithm: Algorithm, t: int, progress: dict[str, Any]) -> dict[str, Any]:
    """Collective. One round, and its line of stats.jsonl, the same on every rank."""
    node, link = algorithm.node, algorithm.link
    algorithm.ledger = Ledger()
    link.reset_counters()
    start = time.perf_counter()
    algorithm.round(t)
    losses, times = _share(node, algorithm.ledger)
    seconds = time.perf_counter() - start

    shares = node.participation.shares(t)
    participants = list(shares)
    steps = node.config.training.discriminator_steps
    progress["images_seen"] += steps * sum(node.batch_sizes[device - 1] for device in participants)
    flat, size = algorithm.flat, algorithm.flat.phi.element_size()
    payload = algorithm.payload(flat.theta.numel(), flat.phi.numel())
    d_loss = math.fsum(shares[device] * losses[device] for device in participants)
    g_loss = losses[0]
    return {
        "round": t + 1,
        "participants": participants,
        "d_loss": d_loss if steps else None,
        "g_loss": g_loss if node.config.training.generator_steps else None,
        "seconds": seconds,
        # A rank that waits in a verb for others counts that too; who came last did not wait.
        "seconds_downlink": float(times[:, 0].min()),
        "seconds_local": float(times[:, 2].max()),
        "seconds_uplink": float(times[:, 1].min()),
        "seconds_server": float(times[:, 3].max()),
        "bytes_down": payload.down * size * len(participants),
        "bytes_up": payload.up * size * len(participants),
        # BatchNorm statistics and averaged moments, beside the parameters.
        "bytes_down_other": (link.bytes_down - payload.down * size) * len(participants),
        "bytes_up_other": (link.bytes_up - payload.up * size) * len(participants),
        "images_seen": progress["images_seen"],
    }


def _share(node: Node, ledger: Ledger) -> tuple[dict[int, float], NDArray[np.float64]]:
    """Collective. Every device's loss (0: the server's) and every rank's times, on every rank.

    Each number has one rank that knows it, so the sum over ranks is exact.
    """
    link, devices = node.link, node.participation.devices
    losses = np.zeros(devices + 1)
    for device, loss in ledger.d_loss.items():
        losses[device] = loss
    if link.is_server:
        losses[0] = ledger.g_loss
    times = np.zeros((link.size, 4))
    mine = (link.seconds_down, link.seconds_up, ledger.seconds_local, ledger.seconds_server)
    times[link.rank] = mine
    numbers = link.sum(np.concatenate([losses, times.ravel()]))
    return dict(enumerate(numbers[: devices + 1].tolist())), numbers[devices + 1 :].reshape(
        times.shape
    )


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

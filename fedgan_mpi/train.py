"""The loop over rounds: round, record, score, checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedgan_mpi.algorithms import ALGORITHMS
from fedgan_mpi.algorithms.base import Algorithm, Ledger
from fedgan_mpi.clock import Clock, make_clock
from fedgan_mpi.cluster.link import AgreedError, Link, RankLost
from fedgan_mpi.cluster.node import Node, build_node
from fedgan_mpi.cluster.pair import build_pair
from fedgan_mpi.cluster.placement import choose_torch_device, set_threads
from fedgan_mpi.keep import Keeper
from fedgan_mpi.progress import Progress
from fedgan_mpi.resume import resume
from fedgan_mpi.run.record import Record, forget_after
from fedgan_mpi.start import Start, describe_run
from fedgan_mpi.survive import Memory
from fedgan_mpi.tally import add_up, check_finite, line_of_round


def train(link: Link, start: Start) -> int:
    """Collective. Train to the last round and leave a whole run directory behind.

    Gives the exit status: 0, or that of a job that a signal has ended.
    """
    began = time.perf_counter()
    config = start.config
    torch_device = choose_torch_device(config, link)
    set_threads(config, link)
    manifest = start.manifest
    images, histograms = manifest.images, manifest.histograms
    pooled = [sum(counts) for counts in zip(*histograms, strict=True)]
    if not config.algorithm.method.has_devices:
        images, histograms = [sum(images)], [pooled]
    pair = build_pair(config, manifest.image_shape, torch_device, histogram=pooled)
    node = build_node(link, config, pair, start.shards, images, histograms)
    algorithm = ALGORITHMS[config.algorithm.name](node)

    done, progress = resume(node, start) if start.resume else (0, Progress())
    _recall(node, progress)
    record = _open_record(node, start, done, progress)
    if start.resume:  # nothing has refused it
        link.from_server(lambda: describe_run(start, link))
    if torch_device != "cpu":
        record.say(f"vectors travel by {link.route}")
    keeper = Keeper(node, start, record, progress)
    link.watch(config.link.deadline)
    memory = Memory(node) if config.link.survive else None
    clock = None
    if config.wireless.on and link.is_server:
        classes = len(pooled) if config.model.conditional else 0
        clock = make_clock(config, manifest.image_shape, images, classes)
    complete = True  # nobody has died, or those who are left have taken note
    while True:
        try:
            if memory is not None and not complete:
                keeper.record.close()
                done, progress = memory.go_back()
                _recall(node, progress)
                keeper.go_back(_open_record(node, start, done, progress), progress)
                complete = True
            _train_from(done, algorithm, clock, keeper, memory, began)
            return keeper.stopped or 0
        except AgreedError:
            keeper.close(whole=complete)
            raise
        except RankLost:
            complete = False


def _recall(node: Node, progress: Progress) -> None:
    """Have participation know again what it knew when `progress` was noted."""
    norms = progress.update_norms or [0.0] * node.participation.devices
    node.participation.update_norms = list(norms)


def _open_record(node: Node, start: Start, done: int, progress: Progress) -> Record:
    """Collective. Raises AgreedError where the run's record is damaged."""
    config = start.config
    scored = max((score["round"] for score in progress.scores), default=-1)
    node.link.from_server(lambda: forget_after(start.run, done, scored))
    return Record(
        start.run if node.link.is_server else None,
        rounds=config.training.rounds,
        done=done,
        tensorboard=config.record.tensorboard,
    )


def _train_from(
    done: int,
    algorithm: Algorithm,
    clock: Clock | None,
    keeper: Keeper,
    memory: Memory | None,
    began: float,
) -> None:
    """Collective. The rounds after `done`, and what they leave behind."""
    if memory is not None:
        memory.remember(done, keeper.progress)
    algorithm.start_over()
    go_on = keeper.begin(done)
    with algorithm.cores.held():
        for t in range(done, keeper.last if go_on else done):
            if memory is not None:
                memory.remember(t, keeper.progress)
            stats = play_round(
                algorithm,
                t,
                keeper.progress,
                keeper.meanwhile,
                keeper.vote.numbers,
                clock,
                # What devices do while the server draws would be in no round's seconds.
                goes_ahead=not keeper.computes_after(t + 1),
            )
            keeper.record.round(stats)
            with algorithm.cores.released() if keeper.computes_after(t + 1) else nullcontext():
                goes_on = keeper.after(t + 1)
            if not goes_on:
                break
    if keeper.stopped is None:
        keeper.finish(time.perf_counter() - began)
    keeper.record.close()
    algorithm.link.farewell()
    if keeper.unsaved is not None:  # the generator is there
        raise AgreedError(keeper.unsaved)


def play_round(
    algorithm: Algorithm,
    t: int,
    progress: Progress,
    meanwhile: Callable[[int], None] = lambda round: None,
    vote: NDArray[np.float64] | None = None,
    clock: Clock | None = None,
    *,
    goes_ahead: bool = True,
) -> dict[str, Any]:
    """Collective. One round, and its line of stats.jsonl, the same on every rank but for what the
    server's clock tells.

    meanwhile: what a rank does with its part of the round behind it, before it waits for others;
    takes the number of rounds.
    vote: float64 numbers, overwritten with their sum over ranks.
    goes_ahead: whether devices begin the next round while ranks add up.
    """
    node, link = algorithm.node, algorithm.link
    algorithm.ledger.images_drawn_before = node.images_drawn
    link.reset_counters()
    start = time.perf_counter()
    algorithm.round(t)
    with algorithm.cores.work(is_step=False):
        meanwhile(t + 1)
    vote = np.zeros(0) if vote is None else vote
    # What is done ahead counts in the next round.
    ledger, algorithm.ledger = algorithm.ledger, Ledger()

    def go_ahead() -> None:
        if goes_ahead:
            algorithm.look_ahead(t + 1)
        algorithm.cores.stand_together()

    whole = add_up(node, t, ledger, vote, meanwhile=go_ahead)
    seconds = time.perf_counter() - start

    shares = node.participation.shares(t)
    check_finite(whole, t, len(shares))
    progress.images_seen += whole.images
    wireless_seconds = None
    if clock is not None:
        measured = (whole.seconds_of_device, whole.seconds_server)
        wireless_seconds = clock.seconds(t, list(shares), measured)
    if whole.update_norms:  # from now on others take part
        node.participation.learn(whole.update_norms)
        progress.update_norms = list(node.participation.update_norms)
    seen = progress.images_seen
    return line_of_round(algorithm, t, shares, whole, seconds, wireless_seconds, seen)

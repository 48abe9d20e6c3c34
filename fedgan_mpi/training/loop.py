"""The loop over rounds: round, record, score, checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedgan_mpi.algorithms import ALGORITHMS
from fedgan_mpi.algorithms.base import Algorithm, LocalMetrics
from fedgan_mpi.comm.link import AgreedError, Link, RankLost
from fedgan_mpi.federation.networks import build_networks
from fedgan_mpi.federation.rank import RankState, build_rank_state
from fedgan_mpi.hardware.placement import choose_torch_device, set_threads
from fedgan_mpi.run.directory import Record, forget_after
from fedgan_mpi.training.hooks import TrainingHooks
from fedgan_mpi.training.recovery import Recovery
from fedgan_mpi.training.resume import resume
from fedgan_mpi.training.round_metrics import allreduce_metrics, check_finite, round_stats
from fedgan_mpi.training.setup import RunContext, describe_run
from fedgan_mpi.training.state import TrainState
from fedgan_mpi.wireless.clock import Clock, make_clock


def train(link: Link, start: RunContext) -> int:
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
    if not config.algorithm.traits.has_devices:
        images, histograms = [sum(images)], [pooled]
    pair = build_networks(config, manifest.image_shape, torch_device, histogram=pooled)
    rank_state = build_rank_state(link, config, pair, start.shards, images, histograms)
    algorithm = ALGORITHMS[config.algorithm.name](rank_state)

    done, progress = resume(rank_state, start) if start.resume else (0, TrainState())
    _recall(rank_state, progress)
    record = _open_record(rank_state, start, done, progress)
    if start.resume:  # nothing has refused it
        link.from_server(lambda: describe_run(start, link))
    if torch_device != "cpu":
        record.log(f"vectors travel by {link.route}")
    keeper = TrainingHooks(rank_state, start, record, progress)
    link.watch(config.link.deadline)
    memory = Recovery(rank_state) if config.link.survive else None
    clock = None
    if config.wireless.on and link.is_server:
        classes = len(pooled) if config.model.conditional else 0
        clock = make_clock(config, manifest.image_shape, images, classes)
    complete = True  # nobody has died, or those who are left have taken note
    while True:
        try:
            if memory is not None and not complete:
                keeper.record.close()
                done, progress = memory.rollback()
                _recall(rank_state, progress)
                keeper.rollback(_open_record(rank_state, start, done, progress), progress)
                complete = True
            _train_from(done, algorithm, clock, keeper, memory, began)
            return keeper.stopped or 0
        except AgreedError:
            keeper.close(whole=complete)
            raise
        except RankLost:
            complete = False


def _recall(rank_state: RankState, progress: TrainState) -> None:
    """Have participation know again what it knew when `progress` was noted."""
    norms = progress.update_norms or [0.0] * rank_state.participation.devices
    rank_state.participation.update_norms = list(norms)


def _open_record(
    rank_state: RankState, start: RunContext, done: int, progress: TrainState
) -> Record:
    """Collective. Raises AgreedError where the run's record is damaged."""
    config = start.config
    scored = max((score["round"] for score in progress.scores), default=-1)
    rank_state.link.from_server(lambda: forget_after(start.run, done, scored))
    return Record(
        start.run if rank_state.link.is_server else None,
        rounds=config.training.rounds,
        done=done,
        tensorboard=config.record.tensorboard,
    )


def _train_from(
    done: int,
    algorithm: Algorithm,
    clock: Clock | None,
    keeper: TrainingHooks,
    memory: Recovery | None,
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
            stats = run_round(
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
    algorithm.link.final_barrier()
    if keeper.unsaved is not None:  # the generator is there
        raise AgreedError(keeper.unsaved)


def run_round(
    algorithm: Algorithm,
    t: int,
    progress: TrainState,
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
    rank_state, link = algorithm.rank_state, algorithm.link
    algorithm.metrics.images_drawn_before = rank_state.images_drawn
    link.reset_counters()
    start = time.perf_counter()
    algorithm.round(t)
    with algorithm.cores.work(is_step=False):
        meanwhile(t + 1)
    vote = np.zeros(0) if vote is None else vote
    # What is done ahead counts in the next round.
    metrics, algorithm.metrics = algorithm.metrics, LocalMetrics()

    def go_ahead() -> None:
        if goes_ahead:
            algorithm.prefetch(t + 1)
        algorithm.cores.stand_together()

    whole = allreduce_metrics(rank_state, t, metrics, vote, meanwhile=go_ahead)
    seconds = time.perf_counter() - start

    shares = rank_state.participation.shares(t)
    check_finite(whole, t, len(shares))
    progress.images_seen += whole.images
    wireless_seconds = None
    if clock is not None:
        measured = (whole.seconds_of_device, whole.seconds_server)
        wireless_seconds = clock.seconds(t, list(shares), measured)
    if whole.update_norms:  # from now on others take part
        rank_state.participation.learn(whole.update_norms)
        progress.update_norms = list(rank_state.participation.update_norms)
    seen = progress.images_seen
    return round_stats(algorithm, t, shares, whole, seconds, wireless_seconds, seen)

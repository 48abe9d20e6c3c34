"""The loop over rounds: round, metrics, hooks; and the recovery from the death of a rank."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedgan_mpi.algorithms.base import Algorithm
from fedgan_mpi.algorithms.local_metrics import LocalMetrics
from fedgan_mpi.algorithms.registry import make_algorithm
from fedgan_mpi.callbacks import Callback
from fedgan_mpi.comm.link import Link, RankLost
from fedgan_mpi.errors import AgreedError
from fedgan_mpi.federation.networks import build_networks, vector_lengths
from fedgan_mpi.federation.rank import RankState, build_rank_state
from fedgan_mpi.hardware.affinity import Affinity
from fedgan_mpi.hardware.placement import choose_torch_device, set_threads, why_torch_has_no_gpu
from fedgan_mpi.hardware.ranges import named
from fedgan_mpi.nn.schedules import rate_factor
from fedgan_mpi.run.record import Record, rewind_record
from fedgan_mpi.run.result import Result
from fedgan_mpi.run.stats import AUGMENT_SIGN
from fedgan_mpi.training.detection import detect, set_weights
from fedgan_mpi.training.hooks import TrainingHooks
from fedgan_mpi.training.overlap import Overlap
from fedgan_mpi.training.profiling import profiled
from fedgan_mpi.training.provenance import describe_run
from fedgan_mpi.training.recovery import Recovery
from fedgan_mpi.training.resume import resume
from fedgan_mpi.training.round_metrics import allreduce_metrics, check_finite, round_stats
from fedgan_mpi.training.setup import RunContext
from fedgan_mpi.training.start import load_networks, load_owners
from fedgan_mpi.training.state import TrainState
from fedgan_mpi.wireless.clock import Clock, make_clock
from fedgan_mpi.wireless.timeline import Timeline


def train_run(link: Link, context: RunContext, callbacks: Sequence[Callback] = ()) -> Result:
    """Train to the last round and complete the run directory. Collective."""
    began = time.perf_counter()
    algorithm = build_algorithm(link, context)
    rank_state, config = algorithm.rank_state, context.config
    done, state = resume(rank_state, context) if context.resume else (0, TrainState())
    if len(rank_state.pair.flat.fixed):  # of a checkpoint, the server alone has read them
        link.broadcast_exact(rank_state.pair.flat.fixed)
    restore_learned(algorithm, state)
    record = open_record(rank_state, context, done, state)
    describe_run(rank_state, context)  # a run that is resumed: its checkpoint is accepted
    if config.training.device == "auto" and (reason := why_torch_has_no_gpu()):
        record.log(f"The server trains on the CPU: {reason}.")
    for route in link.routes if link.size > 1 else []:
        record.log(f"{route}.")
    for note in rank_state.notes:
        record.log(note)
    if link.size == 1 and config.algorithm.traits.has_devices:
        ranks = rank_state.participation.devices + 1
        record.log(
            f"One rank is the server and hosts all devices. Up to {ranks} ranks can share the "
            f"work: mpirun -n {ranks} python -m fedgan_mpi …"
        )
    hooks = TrainingHooks(rank_state, context, record, state, callbacks)
    link.watch_for_hangs()
    loop = Loop(algorithm, hooks, make_clock_of(algorithm, context))
    recovery = Recovery(rank_state) if config.link.survive else None
    complete = True  # no rank has died since the last rollback
    while True:
        try:
            if recovery is not None and not complete:
                hooks.record.close()
                done, state = recovery.rollback()
                restore_learned(algorithm, state)
                hooks.rollback(open_record(rank_state, context, done, state), state)
                complete = True
            loop.run(done, recovery)
            if hooks.exit_status is None:
                hooks.on_run_end(time.perf_counter() - began)
            hooks.record.close()
            link.final_barrier()
            link.detector.stop()
            result = Result(
                path=context.run,
                rounds=hooks.last_round if hooks.exit_status is None else hooks.completed_rounds,
                scores=hooks.state.scores,
                exit_status=hooks.exit_status or 0,
            )
            for callback in callbacks:
                callback.on_run_end(result)
            if hooks.checkpoint_problem is not None:  # the generator is complete
                raise AgreedError(hooks.checkpoint_problem)
            return result
        except AgreedError:
            hooks.close(complete=complete)
            raise
        except RankLost:
            complete = False
        except Exception:  # on this rank: a later run in this process has its own progress bar
            hooks.checkpoints.discard()
            hooks.record.close()
            raise


class Loop:
    """The rounds of one run."""

    def __init__(
        self, algorithm: Algorithm, hooks: TrainingHooks, clock: Clock | Timeline | None
    ) -> None:
        """Collective."""
        self.algorithm, self.hooks, self.clock = algorithm, hooks, clock
        self.overlap = Overlap(algorithm)
        self.affinity = make_affinity(algorithm)
        algorithm.link.subscribers.append(self.affinity.on_verb)

    def run(self, done: int, recovery: Recovery | None = None) -> None:
        """Run the rounds after `done`, with their hooks. Collective."""
        hooks = self.hooks
        if recovery is not None:
            recovery.take_snapshot(done, hooks.state)
        self.algorithm.start_over()
        goes_on = hooks.on_run_begin(done)
        profile = profiled(self.algorithm.rank_state, hooks.context.run, done, hooks.record.log)
        with self.affinity.pinned(), profile as on_profiled_round:
            for t in range(done, hooks.last_round if goes_on else done):
                if recovery is not None:
                    recovery.take_snapshot(t, hooks.state)
                with named("round"):
                    stats = self.run_round(t)
                on_profiled_round()
                hooks.on_round_recorded(stats)
                busy = hooks.is_busy_after(t + 1)
                with self.affinity.unpinned() if busy else nullcontext():
                    goes_on = hooks.on_round_end(t + 1)
                if not goes_on:
                    break

    def run_round(self, t: int) -> dict[str, Any]:
        """Run round t and return its line of stats.jsonl. Collective."""

        def start_early() -> None:
            # Early starts while the server scores or draws would count in no round's seconds.
            if not self.hooks.is_busy_after(t + 1):
                self.overlap.start_device(t + 1)

        stats = run_round(
            self.algorithm,
            t,
            self.hooks.state,
            on_computed=self.hooks.on_round_computed,
            flags=self.hooks.flags.numbers,
            overlap=start_early,
            clock=self.clock,
        )
        self.overlap.seconds_server = stats["seconds_server"]
        return stats


def run_round(
    algorithm: Algorithm,
    t: int,
    state: TrainState,
    *,
    on_computed: Callable[[int], None] = lambda round: None,
    flags: NDArray[np.float64] | None = None,
    overlap: Callable[[], None] = lambda: None,
    clock: Clock | Timeline | None = None,
) -> dict[str, Any]:
    """Run round t and return its line of stats.jsonl. Collective.

    The line is equal on every rank, except for `seconds` and the server's wireless clock.

    on_computed: Called with the number of rounds after this rank's part, before it waits.
    flags: float64. Overwritten with the sum over ranks.
    overlap: Called while this rank waits for the others' metrics.
    """
    rank_state, link = algorithm.rank_state, algorithm.link
    algorithm.metrics.images_drawn_before = rank_state.images_drawn
    if algorithm.training.has_lr_schedule:
        for owner in rank_state.owners:
            owner.set_rate(rate_factor(algorithm.training, t))
    link.reset_counters()
    start = time.perf_counter()
    algorithm.round(t)
    on_computed(t + 1)
    local, algorithm.metrics = algorithm.metrics, LocalMetrics()  # overlap counts in round t + 1
    flags = np.zeros(0) if flags is None else flags
    metrics = allreduce_metrics(rank_state, t, local, flags, overlap)
    seconds = time.perf_counter() - start

    shares = rank_state.participation.shares(t)
    check_finite(metrics, t, len(shares))
    state.images_seen += metrics.images
    wireless_seconds = None
    if clock is not None:
        measured = (metrics.seconds_of_device, metrics.seconds_server)
        wireless_seconds = clock.seconds(t, list(shares), measured)
    if metrics.update_norms:  # the policy `importance` draws the next round by them
        rank_state.participation.set_update_norms(metrics.update_norms)
        state.update_norms = list(rank_state.participation.update_norms)
    seen = state.images_seen
    stats = round_stats(algorithm, t, shares, metrics, seconds, wireless_seconds, seen)
    adaptive = rank_state.pair.adaptive
    if adaptive is not None and stats.get(AUGMENT_SIGN) is not None:
        adaptive.update(stats[AUGMENT_SIGN], metrics.images)
        state.augment_probability = adaptive.p
    if algorithm.detector is not None:
        stats |= detect(algorithm.detector, rank_state, t, metrics, state)
    return stats


# -------------------------------------------------------------------- construction


def build_algorithm(link: Link, context: RunContext) -> Algorithm:
    """Build this rank's networks, devices and algorithm. Collective."""
    config, manifest = context.config, context.manifest
    torch_device = choose_torch_device(config, link)
    set_threads(config, cores=link.local_cores, ranks=link.local_size)
    images, histograms = context.images_and_histograms
    pair = link.on_every_rank(
        lambda: build_networks(
            config, manifest.image_shape, torch_device, histogram=context.pooled_histogram
        )
    )
    link.choose_route(torch_device, vector_lengths(config, pair))
    start = context.start
    average = None if start is None else load_networks(link, pair, start, config)
    rank_state = build_rank_state(link, config, pair, context.shards, images, histograms)
    algorithm = make_algorithm(config.algorithm, rank_state)
    if start is not None and average is not None:
        load_owners(rank_state, start, average)
    return algorithm


def make_affinity(algorithm: Algorithm) -> Affinity:
    """Return this rank's affinity, which does nothing unless ranks share the cores of one machine.

    Collective.
    """
    import torch

    link, training = algorithm.link, algorithm.training
    participation = algorithm.rank_state.participation
    cores: list[int] = []
    parallel = algorithm.config.schedule == "parallel"
    # Ranks without participants would leave cores idle; so would the server of a parallel round.
    everyone = participation.count == participation.devices
    if link.shared_cores and training.pin and everyone and not parallel:
        # Two jobs on one machine should not both have their server on the first core.
        first = link.from_server(lambda: os.getpid() % len(link.shared_cores))
        cores = [*link.shared_cores[first:], *link.shared_cores[:first]]
    on_cpu = algorithm.rank_state.pair.torch_device.type == "cpu"
    # A pool's threads would keep the affinity that the main thread has when they start.
    if not on_cpu or torch.get_num_threads() > 1:
        cores = []
    return Affinity(cores, rank=link.rank)


def make_clock_of(algorithm: Algorithm, context: RunContext) -> Clock | Timeline | None:
    """Return the wireless clock, on the server of a run with `wireless.on`."""
    config = context.config
    if not config.wireless.on or not algorithm.link.is_server:
        return None
    if algorithm.timeline is not None:
        return algorithm.timeline
    classes = len(context.pooled_histogram) if config.model.conditional else 0
    images, _ = context.images_and_histograms
    return make_clock(config, type(algorithm), context.manifest.image_shape, images, classes)


def restore_learned(algorithm: Algorithm, state: TrainState) -> None:
    """Restore what the rounds before have taught: update norms, outliers and p of adaptive
    augmentation."""
    rank_state = algorithm.rank_state
    set_weights(algorithm.detector, rank_state, state)
    norms = state.update_norms or [0.0] * rank_state.participation.devices
    rank_state.participation.update_norms = list(norms)
    if rank_state.pair.adaptive is not None:
        rank_state.pair.adaptive.set(state.augment_probability or 0.0)


def open_record(rank_state: RankState, context: RunContext, done: int, state: TrainState) -> Record:
    """Open the run's record for the rounds after `done`. Collective.

    Raises AgreedError if the record is damaged.
    """
    config = context.config
    scored = max((score["round"] for score in state.scores), default=-1)
    rank_state.link.from_server(lambda: rewind_record(context.run, done, scored))
    return Record(
        context.run if rank_state.link.is_server else None,
        rounds=config.training.rounds,
        done=done,
    )

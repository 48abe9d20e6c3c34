"""Going on from a run's newest checkpoint that is whole."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from fedgan_mpi.checkpoint.format import (
    CheckpointManifest,
    checkpoints_of,
    load_checkpoint,
    read_manifest,
    verify_checkpoint,
)
from fedgan_mpi.cli.parser import check_resumable, config_table
from fedgan_mpi.comm.link import AgreedError
from fedgan_mpi.errors import UserError
from fedgan_mpi.federation.rank import RankState
from fedgan_mpi.training.setup import RunContext
from fedgan_mpi.training.state import TrainState


def resume(rank_state: RankState, start: RunContext) -> tuple[int, TrainState]:
    """Collective. Put it back; gives the rounds that are done and what is known of them.

    Raises AgreedError where none is whole, or where it is of another experiment or of more rounds.
    """
    link, rounds = rank_state.link, start.config.training.rounds
    manifest = _newest_whole_checkpoint(rank_state, start.run)
    progress = link.from_server(lambda: progress_of(manifest, start))
    link.on_every_rank(lambda: load_checkpoint(rank_state, manifest))
    if manifest.round > rounds:
        right = f"at least {manifest.round}, the rounds that {start.run} has"
        raise AgreedError(f"training.rounds is {rounds}, but must be {right}")
    return manifest.round, progress


def _newest_whole_checkpoint(rank_state: RankState, run: Path) -> CheckpointManifest:
    """Collective. One that is damaged is named and passed over."""
    link = rank_state.link
    checkpoints = link.from_server(lambda: checkpoints_of(run))
    for checkpoint in reversed(checkpoints):
        try:
            manifest = link.from_server(partial(read_manifest, checkpoint))
            link.on_every_rank(partial(verify_checkpoint, rank_state, manifest))
            return manifest
        except AgreedError as error:
            if checkpoint == checkpoints[0]:
                raise
            if link.is_server:
                print(f"{error}; going on from the checkpoint before", file=sys.stderr, flush=True)
    raise AgreedError(f"{run} has no checkpoint to go on from")


def progress_of(manifest: CheckpointManifest, start: RunContext) -> TrainState:
    """What a checkpoint knows of the rounds behind it. Raises UserError where it is damaged, or of
    another experiment."""
    now = config_table(start.config)
    try:
        progress = TrainState.from_json(manifest.progress, start.manifest.devices)
    except ValueError:
        raise UserError(f"{manifest.path}/checkpoint.json is damaged") from None
    check_resumable(manifest.configuration, now, manifest.path, renamed=True)
    if manifest.shards_sha256 != start.manifest.sha256:
        raise UserError(f"{manifest.path} is of other shards (SHA-256 {manifest.shards_sha256})")
    return progress

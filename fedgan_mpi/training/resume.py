"""Resume of a run from its newest complete checkpoint."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

from fedgan_mpi.checkpoint.format import (
    CheckpointManifest,
    checkpoints_of,
    load_checkpoint,
    read_manifest,
    verify_checkpoint,
)
from fedgan_mpi.config.io import check_resumable, config_table
from fedgan_mpi.errors import AgreedError, UserError
from fedgan_mpi.federation.rank import RankState
from fedgan_mpi.training.setup import RunContext
from fedgan_mpi.training.state import TrainState

logger = logging.getLogger(__name__)


def resume(rank_state: RankState, context: RunContext) -> tuple[int, TrainState]:
    """Load the newest complete checkpoint; return its number of rounds and its state. Collective.

    Raises AgreedError if there is none, or if it belongs to another experiment or has more rounds
    than `training.rounds`.
    """
    link, rounds = rank_state.link, context.config.training.rounds
    manifest = _newest_complete_checkpoint(rank_state, context.run)
    state = link.from_server(lambda: read_state(manifest, context))
    link.on_every_rank(lambda: load_checkpoint(rank_state, manifest))
    if manifest.round > rounds:
        right = f"at least {manifest.round}, the rounds that {context.run} has"
        raise AgreedError(f"training.rounds is {rounds}, but must be {right}")
    return manifest.round, state


def read_state(manifest: CheckpointManifest, context: RunContext) -> TrainState:
    """Return the training state in a checkpoint. Raises UserError if it is damaged or belongs to
    another experiment."""
    try:
        state = TrainState.from_json(manifest.progress, context.manifest.devices)
    except ValueError:
        raise UserError(f"{manifest.path}/checkpoint.json is damaged") from None
    now = config_table(context.config)
    check_resumable(manifest.configuration, now, manifest.path, renamed=True)
    if manifest.shards_sha256 != context.manifest.sha256:
        raise UserError(f"{manifest.path} is of other shards (SHA-256 {manifest.shards_sha256})")
    return state


def _newest_complete_checkpoint(rank_state: RankState, run: Path) -> CheckpointManifest:
    """Return the newest checkpoint that every rank can verify; log the damaged ones. Collective."""
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
                logger.warning("%s; resuming from the checkpoint before", error)
    raise AgreedError(f"{run} has no checkpoint to resume from")

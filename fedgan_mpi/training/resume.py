"""Resume of a run from its newest complete checkpoint."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

from fedgan_mpi.checkpoint.format import (
    CheckpointManifest,
    checkpoints_of,
    load_states,
    read_manifest,
    read_states,
)
from fedgan_mpi.config.io import check_resumable, config_table
from fedgan_mpi.errors import AgreedError, UserError
from fedgan_mpi.federation.rank import RankState
from fedgan_mpi.schema import SchemaError
from fedgan_mpi.training.setup import RunContext
from fedgan_mpi.training.state import TrainState

logger = logging.getLogger(__name__)


class OtherExperimentError(AgreedError):
    """An undamaged checkpoint does not belong to the experiment that the user has described."""


def resume(rank_state: RankState, context: RunContext) -> tuple[int, TrainState]:
    """Load the newest complete checkpoint; return its number of rounds and its state. Collective.

    A checkpoint with damage is skipped with a warning, whichever rank finds it. Raises AgreedError
    if there is no undamaged checkpoint, or if the newest one belongs to another experiment or has
    more rounds than `training.rounds`.
    """
    link = rank_state.link
    checkpoints = link.from_server(lambda: checkpoints_of(context.run))
    for checkpoint in reversed(checkpoints):
        try:
            manifest, state, states = _read(rank_state, context, checkpoint)
        except OtherExperimentError:
            raise
        except AgreedError as error:
            if checkpoint == checkpoints[0]:
                raise
            if link.is_server:
                logger.warning("%s; resuming from the previous checkpoint", error)
            continue
        link.on_every_rank(partial(load_states, rank_state, manifest, states))
        return manifest.round, state
    raise AgreedError(f"{context.run} has no checkpoint to resume from")


def _read(
    rank_state: RankState, context: RunContext, checkpoint: Path
) -> tuple[CheckpointManifest, TrainState, dict[str, dict[str, Any]]]:
    """Read and check a checkpoint without loading it. Collective. Raises AgreedError if any part is
    damaged."""
    link = rank_state.link
    manifest = link.from_server(partial(read_manifest, checkpoint))
    state = link.from_server(partial(read_state, manifest, context.manifest.devices))
    try:
        link.from_server(partial(check_experiment, manifest, context))
    except AgreedError as error:
        raise OtherExperimentError(str(error)) from None
    return manifest, state, link.on_every_rank(partial(read_states, rank_state, manifest))


def read_state(manifest: CheckpointManifest, devices: int) -> TrainState:
    """Return the training state in a checkpoint. Raises UserError if it is damaged."""
    try:
        return TrainState.from_json(manifest.progress, devices)
    except SchemaError as error:
        raise UserError(f"{manifest.path}/checkpoint.json is damaged: {error}") from None


def check_experiment(manifest: CheckpointManifest, context: RunContext) -> None:
    """Raise UserError if a checkpoint is of another configuration or other shards, or has more
    rounds than the run shall have."""
    now, rounds = config_table(context.config), context.config.training.rounds
    check_resumable(manifest.configuration, now, manifest.path, renamed=True)
    before = manifest.configuration.get("training", {}).get("rounds")
    if context.config.training.has_lr_schedule and before != rounds:
        logger.warning(
            "training.rounds was %s and is %s: learning rates continue as if it had always been %s",
            before, rounds, rounds,
        )  # fmt: skip
    if manifest.shards_sha256 != context.manifest.sha256:
        raise UserError(f"{manifest.path} is of other shards (SHA-256 {manifest.shards_sha256})")
    if manifest.round > rounds:
        right = f"at least {manifest.round}, the rounds that {context.run} has"
        raise UserError(f"training.rounds is {rounds}, but must be {right}")

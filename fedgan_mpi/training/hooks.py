"""Training hooks: write scores, sample grids, generators, checkpoints and the report when due."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fedgan_mpi import __version__
from fedgan_mpi.callbacks import Callback
from fedgan_mpi.checkpoint.writer import CheckpointWriter
from fedgan_mpi.config.io import config_table
from fedgan_mpi.errors import AgreedError
from fedgan_mpi.evaluation.generation import generate
from fedgan_mpi.federation.rank import RankState
from fedgan_mpi.random_streams import Purpose
from fedgan_mpi.run.generator_file import BEST
from fedgan_mpi.run.record import Record
from fedgan_mpi.training import signals
from fedgan_mpi.training.artifacts import export, write_final
from fedgan_mpi.training.control_flags import ControlFlags
from fedgan_mpi.training.scoring import Scoring
from fedgan_mpi.training.setup import RunContext
from fedgan_mpi.training.state import TrainState

GRID_IMAGES = 64


class TrainingHooks:
    """Everything that the loop does besides rounds."""

    def __init__(
        self,
        rank_state: RankState,
        context: RunContext,
        record: Record,
        state: TrainState,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        """Collective: computes the statistics of the real images."""
        self.rank_state, self.context = rank_state, context
        self.record, self.state, self.callbacks = record, state, callbacks
        self.completed_rounds = 0
        self._ends_early = False  # a callback on this rank asks for it
        self.last_round = context.config.training.rounds
        self.exit_status: int | None = None
        """Of a job that was stopped by a signal."""
        self.checkpoint_problem: str | None = None
        """Why the last round has no checkpoint."""
        self.checkpoints = CheckpointWriter(
            rank_state,
            context.run,
            keep_last=context.config.checkpoint.keep_last,
            about={
                "configuration": config_table(context.config),
                "shards_sha256": context.manifest.sha256,
                "versions": {"fedgan_mpi": __version__, "torch": torch.__version__},
            },
            log=lambda line: self.record.log(line),
            on_complete=self._on_checkpoint,
        )
        self.flags = ControlFlags()
        self._saved_at = time.monotonic()
        self.scoring = Scoring(rank_state, context, record, state)

    # ---------------------------------------------------------------- called by the loop

    def on_run_begin(self, done: int) -> bool:
        """Score a new generator, or start the score that was due at the checkpoint of round `done`.

        Returns False if there is nothing to train. Collective.
        """
        self.completed_rounds, self._ends_early = done, False
        if self.state.ended_early:
            self.last_round = done
            self.record.log(f"This run has ended early, after round {done}.")
        for callback in self.callbacks:
            callback.on_run_begin(self.context.run, done)
        self._keep_best()
        scored = [score["round"] for score in self.state.scores]
        self._set_flags()
        self.flags.numbers[:] = self.rank_state.link.sum(self.flags.numbers)
        if done == 0 and not scored:
            return self.on_round_end(0)
        if self.flags.stop and done < self.last_round:
            self._stop(done)
            return False
        if done < self.last_round and done not in scored and self._scores_after(done):
            self.scoring.start(done)
        return True

    def on_round_computed(self, round: int) -> None:
        """Do this rank's part of a pending score, and set its flags for the all-reduce.

        Device ranks generate and accumulate here while the server still trains.
        """
        self.scoring.accumulate()
        self._set_flags()

    def on_round_recorded(self, stats: dict[str, Any]) -> None:
        """Write a round's line of stats.jsonl and call the callbacks."""
        self.record.round(stats)
        self.completed_rounds = stats["round"]
        for callback in self.callbacks:
            self._ends_early |= bool(callback.on_round_end(stats["round"], stats))

    def on_round_end(self, round: int) -> bool:
        """Write everything that is due after `round` rounds; after the last one, everything.

        Returns False if training ends here. Collective.
        """
        if (reason := self._finish_score()) is not None:
            self.record.log(f"Training ends after round {round}: {reason}.")
            self.last_round, self.state.ended_early = round, True
        if self.flags.end and round < self.last_round:
            self.record.log(f"Training ends after round {round}, as a callback asked.")
            self.last_round = round
        is_last = round == self.last_round
        if is_last or self._draws_after(round):
            self._draw_grid(round)
        if is_last or self._scores_after(round):
            self.scoring.start(round)
        if is_last or round == 0:
            self.scoring.accumulate()
            self._finish_score()
        self._advance_checkpoint(round)
        if is_last or self.flags.stop:
            self.checkpoint_problem = self.checkpoints.complete()
            if self.checkpoint_problem is not None and not is_last:
                raise AgreedError(self.checkpoint_problem)
        if self.flags.stop and not is_last:
            self._stop(round)
        return not is_last and not self.flags.stop

    def is_busy_after(self, round: int) -> bool:
        """Whether `on_round_end` computes more than a copy."""
        ends = round == self.last_round or self.flags.stop or self.flags.end
        busy = ends or self.scoring.pending is not None
        return busy or self._draws_after(round)

    def on_run_end(self, seconds: float) -> None:
        """Write the final generator and the report. seconds: duration of the job."""
        link = self.rank_state.link
        link.detector.waits_for_results()
        if link.is_server:
            with link.shows_activity():
                write_final(
                    self.rank_state, self.context, self.state, self.record, self.last_round, seconds
                )

    def rollback(self, record: Record, state: TrainState) -> None:
        """Continue from an earlier state; `on_run_begin` is called next. Collective."""
        self.record, self.state = record, state
        self.scoring.rollback(record, state)
        self.last_round = self.context.config.training.rounds
        self.flags, self.exit_status = ControlFlags(), None
        self.checkpoints.abandon()

    def close(self, *, complete: bool) -> None:
        """End a run that cannot continue. Collective.

        complete: no rank has died. Otherwise a checkpoint that is being written is abandoned,
        because a part of it may be missing.
        """
        problem = None
        if complete:
            problem = self.checkpoints.complete()
        else:
            self.checkpoints.abandon()
        if problem is not None:
            self.record.log(problem)
        self.record.close()

    # ---------------------------------------------------------------- checkpoints and flags

    def _on_checkpoint(self, round: int, directory: Path) -> None:
        for callback in self.callbacks:
            callback.on_checkpoint(round, directory)

    def _advance_checkpoint(self, round: int) -> None:
        """Seal a checkpoint whose parts are written, and begin one that is due."""
        if self.checkpoints.is_pending and self.flags.failed:
            self.checkpoints.drop_failed()
        elif self.checkpoints.is_pending and not self.flags.writing:
            self.checkpoints.seal()
        if self.flags.stop or self.flags.late or self._checkpoints_after(round):
            self.checkpoints.begin(round, self.state.to_json())
            self._saved_at = time.monotonic()

    def _set_flags(self) -> None:
        minutes = self.context.config.checkpoint.minutes
        late = minutes is not None and time.monotonic() - self._saved_at > 60 * minutes
        writing, failed = self.checkpoints.local_status()
        self.flags.set(
            requeue=signals.requeue_requested(),
            interrupted=signals.interrupted(),
            writing=writing,
            late=late and self.rank_state.link.is_server,
            failed=failed,
            end=self._ends_early,
        )

    def _stop(self, round: int) -> None:
        self.exit_status = signals.REQUEUE if self.flags.requeue else signals.INTERRUPTED
        ranks = self.rank_state.link.size
        self.record.log(
            f"Stopped by a signal after round {round}. Checkpoint written. Resume with: "
            f"mpirun -n {ranks} python -m fedgan_mpi train --resume {self.context.run}"
        )

    # ---------------------------------------------------------------- what is due

    def _checkpoints_after(self, round: int) -> bool:
        checkpoint = self.context.config.checkpoint
        scored = checkpoint.keep_best and self._scores_after(round)
        return _is_due(round, checkpoint.every) or scored or round == self.last_round

    def _scores_after(self, round: int) -> bool:
        return round == 0 or _is_due(round, self.context.config.evaluation.every)

    def _draws_after(self, round: int) -> bool:
        return self._scores_after(round) or _is_due(round, self.context.config.record.grid_every)

    # ---------------------------------------------------------------- scores and grids

    def _draw_grid(self, round: int) -> None:
        """Write a grid of samples from the same noise every time; on the server."""
        if self.rank_state.link.is_server:
            images = generate(
                self.rank_state.pair,
                self.rank_state.evaluated_generator,
                seed=self.context.config.run.seed,
                count=GRID_IMAGES,
                purpose=Purpose.GRID,
                chunk=0,
                dtype=self.context.manifest.dtype,
            ).images
            with self.rank_state.link.shows_activity():
                self.record.grid(round, images)
                for callback in self.callbacks:
                    callback.on_samples(round, images)

    def _finish_score(self) -> str | None:
        """Record the pending score, and export its generator if it is the best so far. Collective.

        Returns the reason if the training ends here, else None.
        """
        scored = self.scoring.finish()
        if scored is None:
            return None
        for callback in self.callbacks:
            callback.on_score(self.state.scores)
        if scored.is_best:
            self._keep_best()
            if self.rank_state.link.is_server:
                best = (BEST, scored.round, scored.generator)
                with self.rank_state.link.shows_activity():
                    export(self.rank_state, self.context, self.state, *best)
        evaluation = self.context.config.evaluation
        if scored.has_collapsed and evaluation.on_collapse == "stop":
            return "evaluation.on_collapse is 'stop', and the generator has collapsed"
        patience = evaluation.patience
        if patience is not None and self.state.scores_since_best >= patience:
            return f"evaluation.patience is {patience}, and no score was better since"
        return None

    def _keep_best(self) -> None:
        best = self.state.best
        if self.context.config.checkpoint.keep_best and best is not None:
            self.checkpoints.best = best["round"]


def _is_due(round: int, every: int) -> bool:
    return every > 0 and round % every == 0

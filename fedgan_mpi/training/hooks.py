"""What a run leaves behind while it trains, and when: scores, grids, generators, checkpoints, and
its report."""

from __future__ import annotations

import time

import torch

from fedgan_mpi import __version__
from fedgan_mpi.checkpoint.writer import Checkpoints
from fedgan_mpi.cli.parser import config_table
from fedgan_mpi.comm.link import AgreedError
from fedgan_mpi.evaluation.scorer import generate
from fedgan_mpi.federation.rank import RankState
from fedgan_mpi.random_streams import Purpose
from fedgan_mpi.run.directory import Record
from fedgan_mpi.run.generator_file import BEST
from fedgan_mpi.training import signals
from fedgan_mpi.training.artifacts import export, finish
from fedgan_mpi.training.control_flags import ControlFlags
from fedgan_mpi.training.scoring import Scoring
from fedgan_mpi.training.setup import RunContext
from fedgan_mpi.training.state import TrainState

GRID_IMAGES = 64


class TrainingHooks:
    """Keeps at the rounds where it is due."""

    def __init__(
        self, rank_state: RankState, start: RunContext, record: Record, progress: TrainState
    ) -> None:
        """Collective: adds up the statistics of the real images."""
        self.rank_state, self.start, self.record, self.progress = (
            rank_state,
            start,
            record,
            progress,
        )
        self.last = start.config.training.rounds
        self.stopped: int | None = None
        """Exit status of a job that a signal has ended."""
        self.unsaved: str | None = None
        """Why there is no checkpoint of the last round."""
        self.checkpoints = Checkpoints(
            rank_state,
            start.run,
            keep_last=start.config.checkpoint.keep_last,
            about={
                "configuration": config_table(start.config),
                "shards_sha256": start.manifest.sha256,
                "versions": {"fedgan_mpi": __version__, "torch": torch.__version__},
            },
            say=lambda line: self.record.log(line),
        )
        self.vote = ControlFlags(self.checkpoints.empty)
        self.saved = time.monotonic()
        self.scoring = Scoring(rank_state, start, record, progress)

    def begin(self, done: int) -> bool:
        """Collective. Score the start of a new run, or go on with the score that was due when the
        checkpoint of round `done` was written. False where training does not even begin."""
        if self.progress.ended_early:
            self.last = done
        self._keep_best()
        scored = [score["round"] for score in self.progress.scores]
        self._cast_vote()
        self.vote.numbers[:] = self.rank_state.link.sum(self.vote.numbers)
        if done == 0 and not scored:
            return self.after(0)
        if self.vote.stops and done < self.last:
            self._stop(done)
            return False
        if done < self.last and done not in scored and self._scores_after(done):
            self.scoring.show(done)
        return True

    def rollback(self, record: Record, progress: TrainState) -> None:
        """Collective. Forget all since `progress` was that; `begin` comes next."""
        self.record, self.progress = record, progress
        self.scoring.rollback(record, progress)
        self.last = self.start.config.training.rounds
        self.vote, self.stopped = ControlFlags(self.checkpoints.empty), None
        self.checkpoints.abandon()

    def meanwhile(self, round: int) -> None:
        """What a rank does with its part of the last of so many rounds behind it: a device rank
        scores its part of what is pending, while the server trains on; all begin with their part of
        a checkpoint, and say what they want agreed."""
        self.scoring.see()
        self._cast_vote()
        if self._is_checkpoint_planned(round):
            self.checkpoints.begin_ahead(round)

    def after(self, round: int) -> bool:
        """Collective. Keep what is due after so many finished rounds, and all of it after the last.
        False where training ends here."""
        config = self.start.config
        if self._settle():
            self.record.log(
                f"no better score in {config.evaluation.patience}, so training ends "
                f"after round {round}"
            )
            self.last, self.progress.ended_early = round, True
        ends = round == self.last
        if ends or self._draws_after(round):
            self._draw(round)
        if ends or self._scores_after(round):
            self.scoring.show(round)
        if ends or round == 0:
            self.scoring.see()
            self._settle()
        if self.checkpoints.waits and self.vote.failed:
            self.checkpoints.give_up()
        elif self.checkpoints.waits and not self.vote.writing:
            self.checkpoints.seal(self.vote.parts)
        if self.vote.stops or self._is_checkpoint_due(round):
            self.checkpoints.begin(round, self.progress.to_json())
            self.saved = time.monotonic()
        if ends or self.vote.stops:
            self.unsaved = self.checkpoints.complete()
            if self.unsaved is not None and not ends:
                raise AgreedError(self.unsaved)
        if self.vote.stops and not ends:
            self._stop(round)
        return not ends and not self.vote.stops

    def computes_after(self, round: int) -> bool:
        """Whether `after` is more than a copy."""
        ends = self.scoring.pending is not None or round == self.last or self.vote.stops
        return ends or self._draws_after(round)

    def close(self, *, whole: bool) -> None:
        """Collective. For a run that cannot go on: what was being written becomes valid where no
        rank has died since, as else nobody may have the server's part, or all of the others."""
        if not whole:
            self.checkpoints.abandon()
            return
        problem = self.checkpoints.complete()
        if problem is not None:
            self.record.log(problem)

    def _is_checkpoint_due(self, round: int) -> bool:
        return self._is_checkpoint_planned(round) or self.vote.late

    def _is_checkpoint_planned(self, round: int) -> bool:
        checkpoint = self.start.config.checkpoint
        scored = checkpoint.keep_best and self._scores_after(round)
        return _is_due(round, checkpoint.every) or scored or round == self.last

    def _cast_vote(self) -> None:
        minutes = self.start.config.checkpoint.minutes
        late = minutes is not None and time.monotonic() - self.saved > 60 * minutes
        writing, failed, parts = self.checkpoints.tell()
        self.vote.cast(
            requeue=signals.requeue_asked(),
            interrupted=signals.interrupted(),
            writing=writing,
            late=late and self.rank_state.link.is_server,
            failed=failed,
            parts=parts,
        )

    def _stop(self, round: int) -> None:
        self.stopped = signals.REQUEUE if self.vote.requeue else signals.INTERRUPTED
        self.record.log(
            f"stopped by a signal after round {round}; to go on, with the same launcher: "
            f"python -m fedgan_mpi train --resume {self.start.run}"
        )

    def _scores_after(self, round: int) -> bool:
        return round == 0 or _is_due(round, self.start.config.evaluation.every)

    def _draws_after(self, round: int) -> bool:
        return self._scores_after(round) or _is_due(round, self.start.config.record.grid_every)

    def _draw(self, round: int) -> None:
        """A grid of the same noise every time; the server's."""
        if self.rank_state.link.is_server:
            images = generate(
                self.rank_state.pair,
                self.rank_state.evaluated_generator,
                seed=self.start.config.run.seed,
                count=GRID_IMAGES,
                purpose=Purpose.GRID,
                chunk=0,
            )
            self.record.grid(round, images)

    def _settle(self) -> bool:
        """Collective. Tell the pending score and export its generator where it is the best so far.
        True where patience is at its end."""
        scored = self.scoring.settle()
        if scored is None:
            return False
        if scored.is_best:
            self._keep_best()
            if self.rank_state.link.is_server:
                best = (BEST, scored.round, scored.generator)
                export(self.rank_state, self.start, self.progress, *best)
        patience = self.start.config.evaluation.patience
        return patience is not None and self.progress.scores_since_best >= patience

    def _keep_best(self) -> None:
        best = self.progress.best
        if self.start.config.checkpoint.keep_best and best is not None:
            self.checkpoints.best = best["round"]

    def finish(self, seconds: float) -> None:
        """Leave the final generator and the report. seconds: that the job has taken."""
        if self.rank_state.link.is_server:
            finish(self.rank_state, self.start, self.progress, self.record, self.last, seconds)


def _is_due(round: int, every: int) -> bool:
    return every > 0 and round % every == 0

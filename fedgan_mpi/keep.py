"""What a run leaves behind while it trains: scores, grids, generators, checkpoints, and its
report."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedgan_mpi import __version__, signals
from fedgan_mpi.cluster.link import AgreedError
from fedgan_mpi.cluster.node import Node
from fedgan_mpi.command_line import config_table
from fedgan_mpi.data import scored_samples
from fedgan_mpi.evaluation.scorer import RealImages, Scorer, Seen, generate, read_extractors
from fedgan_mpi.learning.networks import count_parameters, default_width
from fedgan_mpi.privacy import epsilon
from fedgan_mpi.run.checkpoint_writer import Checkpoints
from fedgan_mpi.run.export import BEST, FINAL, write_generator
from fedgan_mpi.run.record import Record
from fedgan_mpi.start import Start
from fedgan_mpi.streams import Purpose

GRID_IMAGES = 64


class Keeper:
    """Keeps at the rounds where it is due. `progress` is what a resumed run must remember.

    A score that is due in the middle of a run is the device ranks' work in the next round, while
    the server trains its generator, and is told after that round.
    """

    def __init__(self, node: Node, start: Start, record: Record, progress: dict[str, Any]) -> None:
        """Collective: adds up the statistics of the real images."""
        self.node, self.start, self.record, self.progress = node, start, record, progress
        self.last = start.config.training.rounds
        self.stopped: int | None = None
        """Exit status of a job that a signal has ended."""
        self.pending: _Pending | None = None
        self.checkpoints = Checkpoints(
            node,
            start.run,
            keep_last=start.config.checkpoint.keep_last,
            about={
                "configuration": config_table(start.config),
                "shards_sha256": start.manifest.sha256,
                "versions": {"fedgan_mpi": __version__, "torch": torch.__version__},
            },
            say=lambda line: self.record.say(line),
        )
        self.vote = Vote(self.checkpoints.nothing)
        self.saved = time.monotonic()
        self.scorer: Scorer | None = None
        features = start.manifest.features
        samples = node.link.from_server(lambda: scored_samples(start.config, start.heldout))
        path = None if features is None else start.directory / features
        evaluation = start.config.evaluation
        extractors = read_extractors(node.link, path, evaluation.inception_weights)
        if extractors and samples:
            self.scorer = Scorer(
                node.link,
                extractors,
                RealImages(
                    shards=start.shards,
                    images=node.participation.images,
                    heldout=start.heldout,
                    heldout_everywhere=False,
                    directory=start.directory,
                    sha256=start.manifest.sha256,
                ),
                metrics=evaluation.metrics,
                samples=samples,
                seed=start.config.run.seed,
            )
        else:
            missing = "no held-out images" if extractors else "no feature extractor"
            record.say(f"{start.directory} has {missing}, so there are no scores")

    def begin(self, done: int) -> bool:
        """Collective. Score the start of a new run, or go on with the score that was due when the
        checkpoint of round `done` was written. False where training does not even begin."""
        if self.progress["ended_early"]:
            self.last = done
        self._keep_best()
        scored = [score["round"] for score in self.progress["scores"]]
        self._cast_vote()
        self.vote.numbers[:] = self.node.link.sum(self.vote.numbers)
        if done == 0 and not scored:
            return self.after(0)
        if self.vote.stops and done < self.last:
            self._stop(done)
            return False
        if done < self.last and done not in scored and self._scores_after(done):
            self.pending = self._show(done)
        return True

    def go_back(self, record: Record, progress: dict[str, Any]) -> None:
        """Collective. Forget all since `progress` was that; `begin` comes next."""
        self.record, self.progress = record, progress
        self.last = self.start.config.training.rounds
        self.vote, self.pending, self.stopped = Vote(self.checkpoints.nothing), None, None
        self.checkpoints.abandon()

    def meanwhile(self, round: int) -> None:
        """What a rank does with its part of the last of so many rounds behind it: a device rank
        scores its part of what is pending, while the server trains on; all begin with their part of
        a checkpoint, and say what they want agreed."""
        self._see()
        self._cast_vote()
        if self._is_checkpoint_planned(round):
            self.checkpoints.begin_ahead(round)

    def after(self, round: int) -> bool:
        """Collective. Keep what is due after so many finished rounds, and all of it after the last.
        False where training ends here."""
        config = self.start.config
        if self._settle():
            self.record.say(
                f"no better score in {config.evaluation.patience}, so training ends "
                f"after round {round}"
            )
            self.last, self.progress["ended_early"] = round, True
        ends = round == self.last
        scores = ends or self._scores_after(round)
        if ends or self._draws_after(round):
            self._draw(round)
        if scores:
            self.pending = self._show(round)
        if ends or round == 0:
            self._see()
            self._settle()
        if self.checkpoints.waits and self.vote.failed:
            self.checkpoints.give_up()
        elif self.checkpoints.waits and not self.vote.writing:
            self.checkpoints.seal(self.vote.parts)
        if self.vote.stops or self._is_checkpoint_due(round):
            self.checkpoints.begin(round, self.progress)
            self.saved = time.monotonic()
        if ends or self.vote.stops:
            problem = self.checkpoints.complete()
            if problem is not None:
                raise AgreedError(problem)
        if self.vote.stops and not ends:
            self._stop(round)
        return not ends and not self.vote.stops

    def computes_after(self, round: int) -> bool:
        """Whether `after` is more than a copy."""
        ends = self.pending is not None or round == self.last or self.vote.stops
        return ends or self._draws_after(round)

    def close(self, *, whole: bool) -> None:
        """Collective. For a run that cannot go on: what was being written becomes valid where no
        rank has died since, as else nobody may have the server's part, or all of the others."""
        if not whole:
            self.checkpoints.abandon()
            return
        problem = self.checkpoints.complete()
        if problem is not None:
            self.record.say(problem)

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
            late=late and self.node.link.is_server,
            failed=failed,
            parts=parts,
        )

    def _stop(self, round: int) -> None:
        self.stopped = signals.REQUEUE if self.vote.requeue else signals.INTERRUPTED
        self.record.say(
            f"stopped by a signal after round {round}; "
            f"to go on: python -m fedgan_mpi train --resume {self.start.run}"
        )

    def _scores_after(self, round: int) -> bool:
        return round == 0 or _is_due(round, self.start.config.evaluation.every)

    def _draws_after(self, round: int) -> bool:
        return self._scores_after(round) or _is_due(round, self.start.config.record.grid_every)

    def _show(self, round: int) -> _Pending | None:
        """Collective. Give the server's generator as it stands to all ranks."""
        if self.scorer is None:
            return None
        shown = self.node.shown_generator.clone()
        self.node.link.broadcast(shown, traffic="other")
        return _Pending(round=round, generator=shown)

    def _draw(self, round: int) -> None:
        """A grid of the same noise every time; the server's."""
        if self.node.link.is_server:
            images = generate(
                self.node.pair,
                self.node.shown_generator,
                seed=self.start.config.run.seed,
                count=GRID_IMAGES,
                purpose=Purpose.GRID,
                chunk=0,
            )
            self.record.grid(round, images)

    def _settle(self) -> bool:
        """Collective. Tell the pending score and export its generator where it is the best so far.
        True where patience is at its end."""
        if self.scorer is None or self.pending is None:
            return False
        pending, self.pending = self.pending, None
        values = self.scorer.measure(pending.seen or self.scorer.nothing())
        spent = self._privacy_spent(pending.round)
        self.progress["scores"] = self.scorer.lines(pending.round, values)
        for score in self.progress["scores"]:
            self.record.score({**score, **spent})
        value, best = self.progress["scores"][0]["value"], self.progress["best"]
        if best is None or value < best["value"]:
            self.progress["best"] = {"round": pending.round, "value": value}
            self.progress["scores_since_best"] = 0
            self._keep_best()
            self._export(BEST, pending.round, pending.generator)
        else:
            self.progress["scores_since_best"] += 1
        patience = self.start.config.evaluation.patience
        return patience is not None and self.progress["scores_since_best"] >= patience

    def _see(self) -> None:
        """This rank's part of the pending score; the server alone has none where there are
        others."""
        link, pending = self.node.link, self.pending
        if pending is None or self.scorer is None or (link.is_server and link.size > 1):
            return
        images = partial(
            generate,
            self.node.pair,
            pending.generator,
            seed=self.start.config.run.seed,
            purpose=Purpose.SCORE,
        )
        part = max(link.rank - 1, 0)
        pending.seen = self.scorer.see(images, rank=part, size=max(link.device_ranks, 1))

    def _keep_best(self) -> None:
        best = self.progress["best"]
        if self.start.config.checkpoint.keep_best and best is not None:
            self.checkpoints.best = best["round"]

    def _privacy_spent(self, round: int) -> dict[str, float]:
        """ε after so many rounds, said aloud; nothing where the algorithm promises none."""
        config = self.start.config
        if config.algorithm.name != "dp_fedavg_gan" or not self.node.link.is_server:
            return {}
        value = epsilon(config, self.node.participation, round)
        delta = config.algorithm.delta
        self.record.say(f"after {round} rounds ε = {value:.4g} for a device (δ = {delta:g})")
        return {"epsilon": value, "delta": delta}

    def finish(self, seconds: float) -> None:
        """The final generator, the report, and the last lines; the server's."""
        if not self.node.link.is_server:
            return
        from fedgan_mpi.report.history import read_history
        from fedgan_mpi.report.page import write_report
        from fedgan_mpi.run.pictures import write_film

        rounds = self.last
        self._export(FINAL, rounds, self.node.shown_generator)
        write_film(self.start.run / "training.gif", sorted(self.start.run.glob("samples/*.png")))
        write_report(self.start.run)
        for score in self.progress["scores"]:
            floor = f"held-out real images: {score['floor']:.4g}"
            value = f"{score['metric']} {score['value']:.4g}"
            self.record.say(f"{value} ({floor}), {score['samples']} images")
        told = read_history(self.start.run).fairness
        if told is not None:
            self.record.say(told.sentence())
        self.record.say(f"{seconds:.1f} s, {rounds} rounds")
        self.record.say(str(self.start.run))

    def _export(self, name: str, round: int, shown: Tensor) -> None:
        if not self.node.link.is_server:
            return
        channels, size, _ = self.start.manifest.image_shape
        G, model = self.node.pair.G, self.start.config.model
        shares = self.node.pair.class_shares
        about = {
            "architecture": model.architecture,
            "size": size,
            "channels": channels,
            "nz": model.nz,
            "width": default_width(model, size),
            "class_shares": None if shares is None else shares.tolist(),
            "class_names": self.start.manifest.class_names,
            "parameters": count_parameters(G),
            "output": "images in [-1, 1], RGB or gray, channels first",
            "round": round,
            "scores": [score for score in self.progress["scores"] if score["round"] == round],
            "dataset": self.start.manifest.dataset,
            "shards_sha256": self.start.manifest.sha256,
            "fedgan_mpi": __version__,
        }
        with self.node.pair.generator(shown):
            write_generator(self.start.run, name, G, about)


class Vote:
    """What ranks must agree on after a round; its numbers are added up with the round's own."""

    def __init__(self, parts: NDArray[np.float64]) -> None:
        """parts: the shape in which those of a checkpoint are told."""
        self._shape = parts.shape
        self.numbers = np.zeros(5 + parts.size)

    def cast(
        self,
        *,
        requeue: bool,
        interrupted: bool,
        writing: bool,
        late: bool,
        failed: bool,
        parts: NDArray[np.float64],
    ) -> None:
        """This rank's. requeue, interrupted: signals that it got; writing: its part of a checkpoint
        is not yet on disk; failed: it cannot be; parts: what it is; late: a checkpoint is due by
        the clock."""
        self.numbers[:5] = requeue, interrupted, writing, late, failed
        self.numbers[5:] = parts.ravel()

    @property
    def requeue(self) -> bool:
        return bool(self.numbers[0])

    @property
    def stops(self) -> bool:
        return bool(self.numbers[:2].any())

    @property
    def writing(self) -> bool:
        return bool(self.numbers[2])

    @property
    def late(self) -> bool:
        return bool(self.numbers[3])

    @property
    def failed(self) -> bool:
        return bool(self.numbers[4])

    @property
    def parts(self) -> NDArray[np.float64]:
        return self.numbers[5:].reshape(self._shape)


@dataclass(kw_only=True)
class _Pending:
    """A generator that is being scored."""

    round: int
    generator: Tensor
    """As it was shown; its own copy, since training goes on."""
    seen: Seen | None = None
    """This rank's part of its images."""


def _is_due(round: int, every: int) -> bool:
    return every > 0 and round % every == 0

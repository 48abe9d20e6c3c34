"""Scores of a run while it trains: of its start, now and then, and of its end.

A score that is due in the middle is the device ranks' work in the next round, while the server
trains its generator, and is told after that round.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import Tensor

from fedgan_mpi.algorithms.privacy import epsilon
from fedgan_mpi.data.loading import scored_samples
from fedgan_mpi.evaluation.scorer import FeatureSums, RealImages, Scorer, generate, read_extractors
from fedgan_mpi.federation.rank import RankState
from fedgan_mpi.random_streams import Purpose
from fedgan_mpi.run.directory import Record
from fedgan_mpi.training.setup import RunContext
from fedgan_mpi.training.state import TrainState


@dataclass(kw_only=True)
class Scored:
    """A generator that is being scored, or has been."""

    round: int
    generator: Tensor
    """As it was shown; its own copy, since training goes on."""
    seen: FeatureSums | None = None
    """This rank's part of its images."""
    is_best: bool = False


class Scoring:
    """At most one score at a time, from `show` by `see` to `settle`."""

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
        self.pending: Scored | None = None
        self.scorer: Scorer | None = None
        features, evaluation = start.manifest.features, start.config.evaluation
        samples = rank_state.link.from_server(lambda: scored_samples(start.config, start.heldout))
        path = None if features is None else start.directory / features
        extractors = read_extractors(rank_state.link, path, evaluation.inception_weights)
        if extractors and samples:
            self.scorer = Scorer(
                rank_state.link,
                extractors,
                RealImages(
                    shards=start.shards,
                    images=rank_state.participation.images,
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
            record.log(f"{start.directory} has {missing}, so there are no scores")

    def rollback(self, record: Record, progress: TrainState) -> None:
        """Forget all since `progress` was that."""
        self.record, self.progress, self.pending = record, progress, None

    def show(self, round: int) -> None:
        """Collective. Give the server's generator as it stands to all ranks."""
        self.pending = None
        if self.scorer is not None:
            shown = self.rank_state.evaluated_generator.clone()
            self.rank_state.link.broadcast(shown, traffic="other")
            self.pending = Scored(round=round, generator=shown)

    def see(self) -> None:
        """This rank's part of the pending score; the server alone has none where there are
        others."""
        link, pending = self.rank_state.link, self.pending
        if pending is None or self.scorer is None or (link.is_server and link.size > 1):
            return
        images = partial(
            generate,
            self.rank_state.pair,
            pending.generator,
            seed=self.start.config.run.seed,
            purpose=Purpose.SCORE,
        )
        part = max(link.rank - 1, 0)
        pending.seen = self.scorer.see(images, rank=part, size=max(link.device_ranks, 1))

    def settle(self) -> Scored | None:
        """Collective. Tell the pending score; None where there is none."""
        if self.scorer is None or self.pending is None:
            return None
        scored, self.pending = self.pending, None
        values = self.scorer.measure(scored.seen or self.scorer.empty())
        spent = self._privacy_spent(scored.round)
        progress = self.progress
        progress.scores = self.scorer.lines(scored.round, values)
        for score in progress.scores:
            self.record.score({**score, **spent})
        value = progress.scores[0]["value"]
        scored.is_best = progress.best is None or value < progress.best["value"]
        if scored.is_best:
            progress.best = {"round": scored.round, "value": value}
            progress.scores_since_best = 0
        else:
            progress.scores_since_best += 1
        return scored

    def _privacy_spent(self, round: int) -> dict[str, float]:
        """ε after so many rounds, said aloud; nothing where the algorithm promises none."""
        config = self.start.config
        if not config.algorithm.traits.is_private or not self.rank_state.link.is_server:
            return {}
        value = epsilon(config, self.rank_state.participation, round)
        delta = config.algorithm.delta
        self.record.log(f"after {round} rounds ε = {value:.4g} for a device (δ = {delta:g})")
        return {"epsilon": value, "delta": delta}

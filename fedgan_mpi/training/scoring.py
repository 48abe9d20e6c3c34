"""Scores of a run during training: of its start, at intervals, and of its end.

Device ranks generate and accumulate a pending score in the next round, while the server trains G.
The score is recorded after that round.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedgan_mpi.algorithms.privacy import epsilon
from fedgan_mpi.data.loading import scored_samples
from fedgan_mpi.evaluation.backdoor_share import METRIC, BackdoorShare
from fedgan_mpi.evaluation.extractors import read_extractors
from fedgan_mpi.evaluation.feature_stats import FeatureStats
from fedgan_mpi.evaluation.generation import Generated, generate
from fedgan_mpi.evaluation.image_classes import find_classes
from fedgan_mpi.evaluation.metrics import make_metrics, need_classes
from fedgan_mpi.evaluation.real_images import RealImages
from fedgan_mpi.evaluation.scorer import Scorer
from fedgan_mpi.federation.rank import RankState
from fedgan_mpi.random_streams import Purpose
from fedgan_mpi.run.record import Record
from fedgan_mpi.training.setup import RunContext
from fedgan_mpi.training.state import TrainState

_ROUNDING = 1e-6
"""Change of a spread, as a share of the real images' spread, that may be a rounding error."""


@dataclass(kw_only=True)
class ScoredGenerator:
    """A generator with a pending or a finished score."""

    round: int
    generator: Tensor
    """A copy of the evaluated generator, because training continues."""
    stats: FeatureStats | None = None
    """The statistics of this rank's part of the fakes."""
    is_best: bool = False
    has_collapsed: bool = False
    """Whether its images are nearly equal: `evaluation.collapse_share`."""


class Scoring:
    """Computes at most one score at a time: `start`, `accumulate`, `finish`."""

    def __init__(
        self, rank_state: RankState, context: RunContext, record: Record, state: TrainState
    ) -> None:
        """Compute the statistics of the real images. Collective."""
        self.rank_state, self.context = rank_state, context
        self.record, self.state = record, state
        self.pending: ScoredGenerator | None = None
        self.scorer: Scorer | None = None
        self.backdoor, self._backdoor_floor = self._new_backdoor(), 0.0
        link, config, manifest = rank_state.link, context.config, context.manifest
        samples = link.from_server(lambda: scored_samples(config, context.heldout))
        path = manifest.extractor_file(context.directory)
        device = str(rank_state.pair.torch_device)
        extractors = read_extractors(link, config.evaluation, manifest.image_shape, path, device)
        if extractors and samples:
            metrics = make_metrics(config.evaluation.metrics, config.evaluation.metric_options)
            classes = find_classes(
                link,
                config,
                extractors,
                is_needed=need_classes(metrics),
                classes=len(manifest.class_names),
                shards=path,
            )
            self.scorer = Scorer(
                link,
                extractors,
                RealImages(
                    shards=context.shards,
                    images=rank_state.participation.images,
                    heldout=context.heldout,
                    heldout_everywhere=False,
                    directory=context.directory,
                    sha256=manifest.sha256,
                ),
                metrics=metrics,
                samples=samples,
                seed=config.run.seed,
                classes=classes,
            )
            if self.backdoor is not None and context.heldout is not None:  # on the server
                chosen = context.heldout.even_indices(samples)
                self.backdoor.accumulate(context.heldout.take(chosen))
                self._backdoor_floor = self.backdoor.patched / samples
        else:
            missing = "no held-out images" if extractors else "no feature extractor"
            record.log(f"This run has no scores: {context.directory} has {missing}.")

    def rollback(self, record: Record, state: TrainState) -> None:
        """Discard the pending score and continue from `state`."""
        self.record, self.state, self.pending = record, state, None

    def start(self, round: int) -> None:
        """Copy the server's generator to all ranks as the pending score. Collective."""
        self.pending, self.backdoor = None, self._new_backdoor()
        if self.scorer is not None:
            generator = self.rank_state.evaluated_generator.clone()
            self.rank_state.link.broadcast_exact(generator)
            self.pending = ScoredGenerator(round=round, generator=generator)

    def accumulate(self) -> None:
        """Generate this rank's part of the pending score. The server has a part only if alone."""
        link, pending = self.rank_state.link, self.pending
        if pending is None or self.scorer is None or (link.is_server and link.size > 1):
            return

        def images(*, count: int, chunk: int) -> Generated:
            link.heartbeat()  # a score may take longer than link.deadline
            generated = generate(
                self.rank_state.pair,
                pending.generator,
                seed=self.context.config.run.seed,
                count=count,
                purpose=Purpose.SCORE,
                chunk=chunk,
                dtype=self.context.manifest.dtype,
            )
            if self.backdoor is not None:
                self.backdoor.accumulate(generated.images)
            return generated

        part, parts = max(link.rank - 1, 0), max(link.device_ranks, 1)
        pending.stats = self.scorer.accumulate(images, rank=part, size=parts)

    def finish(self) -> ScoredGenerator | None:
        """Record the pending score and return it; return None if there is none. Collective."""
        if self.scorer is None or self.pending is None:
            return None
        scored, self.pending = self.pending, None
        values = self.scorer.finish(scored.stats or self.scorer.empty())
        privacy = self._privacy_spent(scored.round)
        state = self.state
        state.scores = self.scorer.lines(scored.round, values)
        for score in state.scores:
            self.record.score({**score, **privacy})
        self._record_backdoor(scored.round)
        scored.has_collapsed = self._check_spread(scored.round)
        value = state.scores[0]["value"]
        scored.is_best = state.best is None or value < state.best["value"]
        if scored.is_best:
            state.best = {"round": scored.round, "value": value}
            state.scores_since_best = 0
        else:
            state.scores_since_best += 1
        return scored

    def _new_backdoor(self) -> BackdoorShare | None:
        attack = self.context.config.attack
        return BackdoorShare(attack) if attack.devices and attack.kind == "backdoor" else None

    def _record_backdoor(self, round: int) -> None:
        """Record how many generated images show the patch, if devices attack with one."""
        if self.backdoor is None or self.scorer is None:
            return
        self.record.score(
            {
                "round": round,
                "metric": METRIC,
                "value": self.backdoor.finish(self.rank_state.link),
                "floor": self._backdoor_floor,
                "samples": self.scorer.samples,
            }
        )

    def _check_spread(self, round: int) -> bool:
        """Return whether the generator has collapsed; if so, record its spread.

        A spread that grows is no collapse: the images of an untrained generator are all grey. They
        are left out, because a spread may fall before it grows.
        """
        assert self.scorer is not None
        if round == 0:
            return False
        share, before = self.context.config.evaluation.collapse_share, self.state.spread
        self.state.spread = self.scorer.spread
        has_grown = before is not None and self.scorer.spread > before + _ROUNDING
        if before is None or self.scorer.spread >= share or has_grown:
            return False
        self.record.score(self.scorer.spread_line(round))
        self.record.log(
            f"The generator may have collapsed: after round {round}, the spread of its features is "
            f"{self.scorer.spread:.2g} times that of real images, below evaluation.collapse_share."
        )
        return True

    def _privacy_spent(self, round: int) -> dict[str, float]:
        """Log and return ε and δ after `round` rounds; empty if the algorithm is not private."""
        config = self.context.config
        if not config.algorithm.traits.is_private or not self.rank_state.link.is_server:
            return {}
        value = epsilon(config, self.rank_state.participation, round)
        delta = config.algorithm.delta
        self.record.log(f"after {round} rounds ε = {value:.4g} for a device (δ = {delta:g})")
        return {"epsilon": value, "delta": delta}

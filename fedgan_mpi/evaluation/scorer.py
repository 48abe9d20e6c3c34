"""Scores a generator against the pooled real images of all devices, on all ranks together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedgan_mpi.comm.link import Link
from fedgan_mpi.evaluation.feature_stats import FeatureStats
from fedgan_mpi.evaluation.features import Extractor
from fedgan_mpi.evaluation.generation import CHUNK, GenerateChunk
from fedgan_mpi.evaluation.image_classes import ImageClasses
from fedgan_mpi.evaluation.metrics import Metric, compute_metrics, need_features, own_rows
from fedgan_mpi.evaluation.real_images import RealImages, heldout_stats, pooled_stats


class Scorer:
    """Computes all metrics through all extractors.

    The statistics of the real images are computed once, at construction. Each value has a floor:
    the same metric of as many held-out real images.
    """

    def __init__(
        self,
        link: Link,
        extractors: Sequence[Extractor],
        real: RealImages,
        *,
        metrics: Mapping[str, Metric],
        samples: int,
        seed: int,
        classes: ImageClasses | None = None,
    ) -> None:
        """Compute the statistics of the real images and the floors. Collective.

        metrics: by name, the Fréchet distance first. samples: generated images per score. classes:
        of the images, if a metric needs them.
        """
        self.link, self.extractors, self.metrics = link, extractors, metrics
        self.samples, self.classes = samples, classes
        real_rows, own = samples if need_features(metrics) else 0, own_rows(metrics)
        self.rows = samples if real_rows or own else 0
        empty = FeatureStats.empty(extractors, real_rows, classes)
        self.real = pooled_stats(link, real, empty, own_rows=own, seed=seed)
        heldout = heldout_stats(link, real, self.empty(), samples=samples)
        self.spread = 1.0
        """Spread of the features of the images that were scored last, as a share of the real one;
        with several extractors, the least."""
        self.floors = self.finish(heldout)
        self.spread_floor = self.spread

    def accumulate(self, generate: GenerateChunk, *, rank: int, size: int) -> FeatureStats:
        """Generate part `rank` of `size` of the fakes and return their statistics."""
        local = self.empty()
        for chunk in range(rank, -(-self.samples // CHUNK), size):
            count = min(CHUNK, self.samples - chunk * CHUNK)
            local.accumulate(*generate(count=count, chunk=chunk), row=chunk * CHUNK)
        return local

    def finish(self, local: FeatureStats) -> dict[str, float]:
        """Return metric name -> value over all ranks' parts, on every rank. Collective."""
        total = local.finish(self.link)
        values: dict[str, float] = {}
        self.spread = min(
            fake.sums.spread / max(real.sums.spread, 1e-300)
            for fake, real in zip(total.per_extractor, self.real.per_extractor, strict=True)
        )
        for fake, real in zip(total.per_extractor, self.real.per_extractor, strict=True):
            values |= compute_metrics(self.link, self.metrics, fake, real)
        return values

    def lines(self, round: int, values: Mapping[str, float]) -> list[dict[str, Any]]:
        """Return the values of `finish` as lines of stats.jsonl.

        A value without a floor is left out: too few held-out images have that class.
        """
        return [
            {
                "round": round,
                "metric": name,
                "value": value,
                "floor": self.floors[name],
                "samples": self.samples,
            }
            for name, value in values.items()
            if name in self.floors
        ]

    def spread_line(self, round: int) -> dict[str, Any]:
        """Return the spread of the images that were scored last as a line of stats.jsonl."""
        return {
            "round": round,
            "metric": "feature_spread",
            "value": self.spread,
            "floor": self.spread_floor,
            "samples": self.samples,
        }

    def empty(self) -> FeatureStats:
        """Return the part of a rank without images."""
        return FeatureStats.empty(self.extractors, self.rows, self.classes)

"""Computes all metrics of one extractor from the feature statistics of fakes and real images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedgan_mpi.comm.link import Link
from fedgan_mpi.evaluation.feature_stats import ExtractorStats
from fedgan_mpi.evaluation.frechet import Array, frechet_distance
from fedgan_mpi.evaluation.pairwise import kernel_distance, prdc

PAIRWISE_METRICS = {"kid": kernel_distance, "prdc": prdc}
"""Metrics that need the features of single images."""
COMMON = 0.01
"""A class counts as covered above this frequency."""


def compute_metrics(
    link: Link, metrics: Sequence[str], fake: ExtractorStats, real: ExtractorStats
) -> dict[str, float]:
    """Return metric name -> value, on every rank. Collective.

    metrics: names of `evaluation.metrics`. fake, real: statistics of all ranks' images. The Fréchet
    distance is always the first value.
    """
    extractor = real.extractor
    values = {extractor.metric("frechet"): frechet_distance(fake.sums, real.sums)}
    if "classes" in metrics and extractor.classes:
        values |= class_coverage(fake.class_frequencies, real.class_frequencies)
    for name, compute in PAIRWISE_METRICS.items():
        if name in metrics:
            pairwise = compute(
                real.rows, fake.rows, rank=link.rank, size=link.size, allreduce=link.sum
            )
            values |= {extractor.metric(name): value for name, value in pairwise.items()}
    return values


def class_coverage(fake: Array, real: Array) -> dict[str, float]:
    """Return the number of classes among the fakes, and the total variation to the real images.

    fake, real: class frequencies, (classes,), that sum to 1.
    """
    return {
        "classes_covered": float((fake > COMMON).sum()),
        "class_total_variation": float(np.abs(fake - real).sum() / 2),
    }

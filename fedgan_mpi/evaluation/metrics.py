"""Metrics: numbers that compare generated images with real ones through a feature extractor."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedgan_mpi import plugins
from fedgan_mpi.comm.link import Link
from fedgan_mpi.config.options import make_part
from fedgan_mpi.errors import UserError
from fedgan_mpi.evaluation.feature_stats import ExtractorStats
from fedgan_mpi.evaluation.frechet import Array, frechet_distance
from fedgan_mpi.evaluation.pairwise import SUBSET_SIZE, kernel_distance, mean_squared_mmd, prdc

_KEY = "evaluation.metrics"
COMMON = 0.01
"""A class counts as covered above this frequency."""


class Metric(ABC):
    """Computes one number or several from the features of generated and of real images.

    The table `evaluation.metric_options.NAME` holds keywords of the constructor.
    """

    needs_features = False
    """Whether it needs the features of single images, `ExtractorStats.rows`. They are sent to all
    ranks."""
    needs_own_features = False
    """Whether it needs features of single images: the generated ones, `ExtractorStats.rows` of the
    fakes, and those of this rank's devices, `ExtractorStats.own`, which are not sent."""
    needs_classes = False
    """Whether it needs `ExtractorStats.sums_of_classes`."""
    is_named_by_extractor = True
    """Whether the names in stats.jsonl end in the name and hash of the extractor."""

    @abstractmethod
    def compute(
        self, fake: ExtractorStats, real: ExtractorStats, link: Link
    ) -> Mapping[str, float]:
        """Return measure -> value; empty if the extractor does not suit. Collective.

        fake, real: equal on every rank. The server's values count.
        """


class Frechet(Metric):
    """Fréchet distance between feature distributions (Heusel et al. 2017, arXiv:1706.08500)."""

    def compute(
        self, fake: ExtractorStats, real: ExtractorStats, link: Link
    ) -> Mapping[str, float]:
        return {"frechet": frechet_distance(fake.sums, real.sums)}


class Classes(Metric):
    """Number of classes generated, and the total variation of their frequencies to the data's."""

    is_named_by_extractor = False

    def compute(
        self, fake: ExtractorStats, real: ExtractorStats, link: Link
    ) -> Mapping[str, float]:
        if not real.extractor.classes:
            return {}
        return class_coverage(fake.class_frequencies, real.class_frequencies)


class KID(Metric):
    """Kernel distance (Bińkowski et al. 2018, arXiv:1801.01401)."""

    needs_features = True

    def compute(
        self, fake: ExtractorStats, real: ExtractorStats, link: Link
    ) -> Mapping[str, float]:
        return kernel_distance(
            real.rows, fake.rows, rank=link.rank, size=link.size, allreduce=link.sum
        )


class FederatedKID(Metric):
    """Mean over devices of the kernel distance to each device's own images, by their numbers."""

    needs_own_features = True

    def compute(
        self, fake: ExtractorStats, real: ExtractorStats, link: Link
    ) -> Mapping[str, float]:
        weighted = [
            (own.images * mean_squared_mmd(own.rows, fake.rows), own.images)
            for own in real.own
            if len(own.rows) > 1  # the distance is not defined for one image
        ]
        total, weight = link.sum(np.array(weighted).reshape(-1, 2).sum(0))
        return {"kid_federated": float(total / weight)} if weight else {}


class PerClass(Metric):
    """Fréchet distance between the real and the generated images of each class."""

    needs_classes = True

    def compute(
        self, fake: ExtractorStats, real: ExtractorStats, link: Link
    ) -> Mapping[str, float]:
        pairs = zip(fake.sums_of_classes, real.sums_of_classes, strict=True)
        return {
            f"frechet_class_{n}": frechet_distance(a, b)
            for n, (a, b) in enumerate(pairs)
            if min(a.count, b.count) > 1  # fewer have no covariance
        }


class PRDC(Metric):
    """Precision, recall, density and coverage (Naeem et al. 2020, arXiv:2002.09797)."""

    needs_features = True

    def compute(
        self, fake: ExtractorStats, real: ExtractorStats, link: Link
    ) -> Mapping[str, float]:
        return prdc(real.rows, fake.rows, rank=link.rank, size=link.size, allreduce=link.sum)


def make_metrics(names: Sequence[str], options: Mapping[str, Any]) -> dict[str, Metric]:
    """Return name -> metric, in order. options: name -> table of options.

    Raises UserError for a name that is no metric, or does not take its options.
    """
    return {
        name: make_part(_KEY, name, Metric, options.get(name, {}))  # type: ignore[type-abstract]
        for name in names
    }


def need_classes(metrics: Mapping[str, Metric]) -> bool:
    """Return whether a metric needs the classes of images."""
    return any(metric.needs_classes for metric in metrics.values())


def need_features(metrics: Mapping[str, Metric]) -> bool:
    """Return whether a metric needs features of single real images on all ranks."""
    return any(metric.needs_features for metric in metrics.values())


def own_rows(metrics: Mapping[str, Metric]) -> int:
    """Return of how many images of a device the features stay on its rank."""
    return SUBSET_SIZE if any(metric.needs_own_features for metric in metrics.values()) else 0


def compute_metrics(
    link: Link, metrics: Mapping[str, Metric], fake: ExtractorStats, real: ExtractorStats
) -> dict[str, float]:
    """Return metric name -> value, equal on every rank. Collective.

    metrics: of `make_metrics`. fake, real: statistics of all ranks' images. Raises AgreedError if a
    metric returns anything but finite numbers.
    """
    values: dict[str, float] = {}
    for name, metric in metrics.items():
        measured = metric.compute(fake, real, link)
        for measure, value in measured.items():
            is_full = not metric.is_named_by_extractor
            values[measure if is_full else real.extractor.metric(measure)] = value
        if not plugins.is_built_in(_KEY, name):
            link.from_server(lambda: _check_values(name, measured))  # noqa: B023 - called at once
    return link.from_server(lambda: values)


def class_coverage(fake: Array, real: Array) -> dict[str, float]:
    """Return the number of classes among the fakes, and the total variation to the real images.

    fake, real: class frequencies, (classes,), that sum to 1.
    """
    return {
        "classes_covered": float((fake > COMMON).sum()),
        "class_total_variation": float(np.abs(fake - real).sum() / 2),
    }


def _check_values(name: str, values: Mapping[str, float]) -> None:
    for measure, value in values.items():
        if not (isinstance(value, int | float) and math.isfinite(value)):
            raise UserError(
                f"{_KEY} has {name!r}, whose {measure} is {value!r}, but must be a finite number"
            )

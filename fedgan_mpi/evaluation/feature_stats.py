"""Feature statistics of a set of images. Ranks accumulate their parts and all-reduce them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from fedgan_mpi.comm.link import Link
from fedgan_mpi.data import Images
from fedgan_mpi.evaluation.features import Classifier, Extractor
from fedgan_mpi.evaluation.frechet import Array, FeatureSums
from fedgan_mpi.evaluation.image_classes import ImageClasses, Labels


class OwnFeatures(NamedTuple):
    """Features of some images of a device, which never leave its rank."""

    images: int
    """All images of the device."""
    rows: Array
    """(n, d)"""


class ExtractorStats:
    """The statistics of a set of images through one extractor."""

    def __init__(self, extractor: Extractor, rows: int, classes: int = 0) -> None:
        """rows: images whose single features are stored; 0 without pairwise metrics. classes: of
        `sums_of_classes`; 0 without scores of single classes."""
        self.extractor = extractor
        self.sums = FeatureSums.zero(extractor.width)
        self.sums_of_classes = [FeatureSums.zero(extractor.width) for _ in range(classes)]
        self.class_counts = np.zeros(extractor.classes)
        """Images of each class that a classifier predicts."""
        self.rows: Array = np.zeros((rows, extractor.width if rows else 0))
        """Features of single images, (rows, d), for pairwise metrics."""
        self.own: list[OwnFeatures] = []
        """One for each device that this rank hosts."""

    @property
    def class_frequencies(self) -> Array:
        frequencies: Array = self.class_counts / self.class_counts.sum()
        return frequencies

    def pack_sums(self) -> Array:
        """Return class counts and sums as one vector."""
        packed = [sums.pack() for sums in (self.sums, *self.sums_of_classes)]
        return np.concatenate([self.class_counts, *packed])

    def load_sums(self, numbers: Array) -> None:
        """Overwrite class counts and sums with a result of `pack_sums`."""
        counted = len(self.class_counts)
        self.class_counts, packed = numbers[:counted], numbers[counted:]
        parts = np.split(packed, 1 + len(self.sums_of_classes))
        unpacked = [FeatureSums.unpack(part, self.extractor.width) for part in parts]
        self.sums, *self.sums_of_classes = unpacked

    def accumulate(
        self, images: Images, classes: Labels | None, *, row: int | None, sums: bool
    ) -> None:
        """Add images; see `FeatureStats.accumulate`."""
        features = self.extractor.compute(images)
        numbers = features.double().cpu().numpy()
        if sums:
            self.sums.accumulate(numbers)
        if sums and classes is not None:
            for n in np.unique(classes):
                self.sums_of_classes[n].accumulate(numbers[classes == n])
        if sums and isinstance(self.extractor, Classifier):
            predicted = self.extractor.logits(features).argmax(1).cpu().numpy()
            self.class_counts += np.bincount(predicted, minlength=len(self.class_counts))
        if row is not None and len(self.rows):
            self.rows[row : row + len(numbers)] = numbers


class FeatureStats:
    """The statistics of a set of images through all extractors."""

    def __init__(
        self, per_extractor: list[ExtractorStats], classes: ImageClasses | None = None
    ) -> None:
        self.per_extractor, self.classes = per_extractor, classes

    @staticmethod
    def empty(
        extractors: Sequence[Extractor], rows: int, classes: ImageClasses | None = None
    ) -> FeatureStats:
        """Return statistics of no images.

        rows: images whose single features are stored. classes: None without scores of single
        classes.
        """
        number = 0 if classes is None else classes.number
        stats = [ExtractorStats(extractor, rows, number) for extractor in extractors]
        return FeatureStats(stats, classes)

    @torch.no_grad()
    def accumulate(
        self,
        images: Images,
        labels: Labels | None = None,
        *,
        row: int | None = None,
        sums: bool = True,
    ) -> None:
        """Add images, (N, C, H, W).

        labels: of the images, int64 (N,), if they have any. row: position of the first image among
        the stored rows; None stores no rows. sums: whether to add the features to the sums.
        """
        classes = self.classes.of(images, labels) if self.classes is not None and sums else None
        for stats in self.per_extractor:
            stats.accumulate(images, classes, row=row, sums=sums)

    def keep(self, images: Images, *, of: int) -> None:
        """Add features of single images of a device, which stay on this rank.

        of: number of all its images.
        """
        for stats in self.per_extractor:
            stats.own.append(OwnFeatures(of, stats.extractor.rows(images)))

    def finish(self, link: Link) -> FeatureStats:
        """All-reduce: return the statistics of all ranks' images. Collective.

        Each row may be stored by one rank only.
        """
        total = []
        for local in self.per_extractor:
            sums = local.pack_sums()
            numbers = link.sum(np.concatenate([sums, local.rows.ravel()]))
            stats = ExtractorStats(local.extractor, 0, len(local.sums_of_classes))
            stats.load_sums(numbers[: len(sums)])
            stats.rows = numbers[len(sums) :].reshape(local.rows.shape)
            stats.own = local.own
            total.append(stats)
        return FeatureStats(total, self.classes)

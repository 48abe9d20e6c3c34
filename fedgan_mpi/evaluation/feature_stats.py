"""Feature statistics of a set of images. Ranks accumulate their parts and all-reduce them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fedgan_mpi.comm.link import Link
from fedgan_mpi.evaluation.features import Classifier, Extractor
from fedgan_mpi.evaluation.frechet import Array, FeatureSums


class ExtractorStats:
    """The statistics of a set of images through one extractor."""

    def __init__(self, extractor: Extractor, rows: int) -> None:
        """rows: images whose single features are stored; 0 without pairwise metrics."""
        self.extractor = extractor
        self.sums = FeatureSums.zero(extractor.width)
        self.class_counts = np.zeros(extractor.classes)
        """Images of each class that a classifier predicts."""
        self.rows: Array = np.zeros((rows, extractor.width if rows else 0))
        """Features of single images, (rows, d), for pairwise metrics."""

    @property
    def class_frequencies(self) -> Array:
        frequencies: Array = self.class_counts / self.class_counts.sum()
        return frequencies

    def pack_sums(self) -> Array:
        """Return class counts and sums as one vector."""
        return np.concatenate([self.class_counts, self.sums.pack()])

    def load_sums(self, numbers: Array) -> None:
        """Overwrite class counts and sums with a result of `pack_sums`."""
        self.class_counts = numbers[: len(self.class_counts)]
        self.sums = FeatureSums.unpack(numbers[len(self.class_counts) :], self.extractor.width)

    def accumulate(self, images: NDArray[np.uint8], *, row: int | None, sums: bool) -> None:
        """Add images; see `FeatureStats.accumulate`."""
        features = self.extractor.compute(images)
        numbers = features.double().cpu().numpy()
        if sums:
            self.sums.accumulate(numbers)
        if sums and isinstance(self.extractor, Classifier):
            predicted = self.extractor.logits(features).argmax(1).cpu().numpy()
            self.class_counts += np.bincount(predicted, minlength=len(self.class_counts))
        if row is not None and len(self.rows):
            self.rows[row : row + len(numbers)] = numbers


class FeatureStats:
    """The statistics of a set of images through all extractors."""

    def __init__(self, per_extractor: list[ExtractorStats]) -> None:
        self.per_extractor = per_extractor

    @staticmethod
    def empty(extractors: Sequence[Extractor], rows: int) -> FeatureStats:
        """Return statistics of no images. rows: images whose single features are stored."""
        return FeatureStats([ExtractorStats(extractor, rows) for extractor in extractors])

    @torch.no_grad()
    def accumulate(
        self, images: NDArray[np.uint8], *, row: int | None = None, sums: bool = True
    ) -> None:
        """Add images, uint8 (N, C, H, W).

        row: position of the first image among the stored rows; None stores no rows. sums: whether
        to add the features to the sums.
        """
        for stats in self.per_extractor:
            stats.accumulate(images, row=row, sums=sums)

    def finish(self, link: Link) -> FeatureStats:
        """All-reduce: return the statistics of all ranks' images. Collective.

        Each row may be stored by one rank only.
        """
        total = []
        for local in self.per_extractor:
            sums = local.pack_sums()
            numbers = link.sum(np.concatenate([sums, local.rows.ravel()]))
            stats = ExtractorStats(local.extractor, 0)
            stats.load_sums(numbers[: len(sums)])
            stats.rows = numbers[len(sums) :].reshape(local.rows.shape)
            total.append(stats)
        return FeatureStats(total)

"""Caches the feature sums of the real images in a file beside the shards.

Without write permission, each job computes the sums again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np

from fedgan_mpi.data.npz import open_npz
from fedgan_mpi.evaluation.feature_stats import ExtractorStats
from fedgan_mpi.evaluation.features import Extractor
from fedgan_mpi.evaluation.frechet import Array
from fedgan_mpi.files import write_complete


class StatsCache:
    """A file of packed sums, one array per extractor.

    Its name is a hash of the shards and extractors, so changed ones miss the cache.
    """

    def __init__(
        self, directory: Path, shards_sha256: str, extractors: Sequence[Extractor]
    ) -> None:
        names = [shards_sha256, *(extractor.sha256 for extractor in extractors)]
        key = hashlib.sha256(" ".join(names).encode()).hexdigest()[:16]
        self.path = directory / ".statistics" / f"{key}.npz"
        self.lengths = [len(ExtractorStats(extractor, 0).pack_sums()) for extractor in extractors]

    def read(self) -> list[Array] | None:
        """Return the packed sums of each extractor, or None if the file is missing or damaged."""
        try:
            with open_npz(self.path) as file:
                if len(file.names) != len(self.lengths):
                    return None
                sums = [np.array(file.read(name)) for name in file.names]
        except Exception:  # a damaged archive raises many types, and the cache is not needed
            return None
        is_complete = [numbers.shape for numbers in sums] == [(n,) for n in self.lengths]
        return sums if is_complete and all(np.isfinite(numbers).all() for numbers in sums) else None

    def write(self, sums: list[Array]) -> None:
        """Write the packed sums, complete or not at all. Do nothing if the disk refuses."""
        buffer = BytesIO()
        np.savez(buffer, *sums)
        try:
            self.path.parent.mkdir(exist_ok=True)
            write_complete(self.path, buffer.getvalue())
        except OSError:
            return

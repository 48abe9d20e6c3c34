"""Caches the feature sums of the real images in a file beside the shards.

Without write permission, each job computes the sums again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np

from fedgan_mpi.data import MANIFEST
from fedgan_mpi.data.npz import open_npz
from fedgan_mpi.evaluation.feature_stats import FeatureStats
from fedgan_mpi.evaluation.features import Extractor
from fedgan_mpi.evaluation.frechet import Array
from fedgan_mpi.evaluation.image_classes import ImageClasses
from fedgan_mpi.files import read_regular_file, write_complete

_BINDING = "binding"
"""The array with the hash of the manifest, the extractors and the sums."""


class StatsCache:
    """A file of packed sums, one array per extractor.

    Its name is a hash of the shards and extractors, so changed ones miss the cache. Its content is
    bound to shards.json by a hash. A file is ignored if more users could write it than shards.json.
    """

    def __init__(
        self,
        directory: Path,
        shards_sha256: str,
        extractors: Sequence[Extractor],
        classes: ImageClasses | None = None,
    ) -> None:
        self._manifest = directory / MANIFEST
        self._names = [shards_sha256, *(extractor.sha256 for extractor in extractors)]
        if classes is not None:
            rule = classes.classifier.sha256 if classes.classifier else "labels"
            self._names.append(f"{classes.number} classes by {rule}")
        key = hashlib.sha256(" ".join(self._names).encode()).hexdigest()[:16]
        self.path = directory / ".statistics" / f"{key}.npz"
        empty = FeatureStats.empty(extractors, 0, classes)
        self.lengths = [len(stats.pack_sums()) for stats in empty.per_extractor]

    def read(self) -> list[Array] | None:
        """Return the packed sums of each extractor, or None if the file is missing, damaged or
        changed, or if it belongs to another manifest."""
        try:
            if not self._is_as_trusted_as_the_manifest():
                return None
            with open_npz(self.path) as file:
                if len(file.names) != len(self.lengths) + 1:
                    return None
                sums = [np.array(file.read(name)) for name in file.names if name != _BINDING]
                binding = file.read(_BINDING).tobytes()
            is_bound = binding == self._binding(sums)
        except Exception:  # a damaged archive raises many types, and the cache is not needed
            return None
        is_complete = [numbers.shape for numbers in sums] == [(n,) for n in self.lengths]
        is_usable = is_bound and is_complete and all(np.isfinite(each).all() for each in sums)
        return sums if is_usable else None

    def write(self, sums: list[Array]) -> None:
        """Write the packed sums, complete or not at all. Do nothing if the disk refuses."""
        buffer = BytesIO()
        try:
            binding = np.frombuffer(self._binding(sums), np.uint8)
            np.savez(buffer, *sums, binding=binding)
            self.path.parent.mkdir(exist_ok=True)
            write_complete(self.path, buffer.getvalue())
        except OSError:
            return

    def _binding(self, sums: Sequence[Array]) -> bytes:
        """Return the SHA-256 of the manifest, the extractors and the sums."""
        digest = hashlib.sha256(hashlib.sha256(read_regular_file(self._manifest)).digest())
        digest.update(" ".join(self._names).encode())
        for numbers in sums:
            digest.update(np.ascontiguousarray(numbers, np.float64).tobytes())
        return digest.digest()

    def _is_as_trusted_as_the_manifest(self) -> bool:
        cache, manifest = os.stat(self.path), os.stat(self._manifest)
        writable_by_more = cache.st_mode & ~manifest.st_mode & 0o022
        return cache.st_uid in (os.geteuid(), manifest.st_uid) and not writable_by_more

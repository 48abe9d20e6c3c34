"""The real images of a score: the devices' shards and the held-out images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedgan_mpi.comm.link import Link
from fedgan_mpi.data import Shard
from fedgan_mpi.evaluation.feature_stats import FeatureStats
from fedgan_mpi.evaluation.features import Extractor
from fedgan_mpi.evaluation.stats_cache import StatsCache
from fedgan_mpi.random_streams import Purpose, numpy_stream

BLOCK = 256  # images per call of an extractor


@dataclass(kw_only=True)
class RealImages:
    """A rank's view of the real images."""

    shards: Mapping[int, Shard]
    """The shards of the devices that this rank hosts."""
    images: Sequence[int]
    """The number of images of device 1, 2, …, over all ranks."""
    heldout: Shard | None
    """On the server, or on every rank if `heldout_everywhere`."""
    heldout_everywhere: bool
    directory: Path
    """The directory of the shards, which also holds the cache of their feature sums."""
    sha256: str
    """The hash over all shards."""


def pooled_stats(
    link: Link, real: RealImages, extractors: Sequence[Extractor], *, rows: int, seed: int
) -> FeatureStats:
    """Return the statistics of all devices' real images, on every rank. Collective.

    rows: images whose single features are stored, drawn from each device in proportion to its
    number of images. The sums come from the cache if it has them.
    """
    ends = np.cumsum([0, *real.images])
    rows = min(rows, int(ends[-1]))
    first_row = ends * rows // ends[-1]
    cache = StatsCache(real.directory, real.sha256, extractors)
    is_cached = link.from_server(lambda: cache.read() is not None)
    local = FeatureStats.empty(extractors, rows)
    for device, shard in real.shards.items():
        begin, end = first_row[device - 1], first_row[device]
        stream = numpy_stream(seed, Purpose.REAL_SCORE, device)
        drawn = np.sort(stream.choice(len(shard), end - begin, replace=False))
        for start in range(0, len(drawn), BLOCK):
            images = shard.take(drawn[start : start + BLOCK])
            local.accumulate(images, row=begin + start, sums=False)
        if not is_cached:
            for start in range(0, len(shard), BLOCK):
                local.accumulate(shard.take(np.arange(start, min(start + BLOCK, len(shard)))))
    if is_cached and link.is_server:
        for stats, sums in zip(local.per_extractor, cache.read() or [], strict=True):
            stats.load_sums(sums)
    total = local.finish(link)
    if link.is_server and not is_cached:
        cache.write([stats.pack_sums() for stats in total.per_extractor])
    return total


def heldout_stats(
    link: Link, real: RealImages, extractors: Sequence[Extractor], *, samples: int, rows: int
) -> FeatureStats:
    """Return this rank's part of the statistics of the first `samples` held-out images.

    rows: `samples` for pairwise metrics, otherwise 0.
    """
    local = FeatureStats.empty(extractors, rows)
    if real.heldout is not None:
        rank, size = (link.rank, link.size) if real.heldout_everywhere else (0, 1)
        for start in range(rank * BLOCK, samples, size * BLOCK):
            indices = np.arange(start, min(start + BLOCK, samples))
            local.accumulate(real.heldout.take(indices), row=start)
    return local

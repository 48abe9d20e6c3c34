"""The real images of a score: the devices' shards and the held-out images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedgan_mpi.comm.link import Link
from fedgan_mpi.data import Shard
from fedgan_mpi.evaluation.feature_stats import FeatureStats
from fedgan_mpi.evaluation.features import BLOCK
from fedgan_mpi.evaluation.image_classes import Labels
from fedgan_mpi.evaluation.stats_cache import StatsCache
from fedgan_mpi.random_streams import Purpose, numpy_stream


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
    link: Link, real: RealImages, empty: FeatureStats, *, own_rows: int, seed: int
) -> FeatureStats:
    """Return the statistics of all devices' real images, on every rank. Collective.

    empty: Has a row for each image whose single features are stored; these are drawn from each
        device in proportion to its number of images.
    own_rows: Images of each device whose features its rank keeps.

    The sums come from the cache if it has them.
    """
    extractors = [stats.extractor for stats in empty.per_extractor]
    ends = np.cumsum([0, *real.images])
    rows = min(len(empty.per_extractor[0].rows), int(ends[-1]))
    first_row = ends * rows // ends[-1]
    cache = StatsCache(real.directory, real.sha256, extractors, empty.classes)
    is_cached = link.from_server(lambda: cache.read() is not None)
    local = FeatureStats.empty(extractors, rows, empty.classes)
    for device, shard in real.shards.items():
        begin, end = first_row[device - 1], first_row[device]
        drawn = _draw(shard, end - begin, seed, device)
        for start in range(0, len(drawn), BLOCK):
            images = shard.take(drawn[start : start + BLOCK])
            local.accumulate(images, row=begin + start, sums=False)
        if own_rows:
            drawn = _draw(shard, min(own_rows, len(shard)), seed, device)
            local.keep(shard.take(drawn), of=len(shard))
        if not is_cached:
            for start in range(0, len(shard), BLOCK):
                indices = np.arange(start, min(start + BLOCK, len(shard)))
                local.accumulate(shard.take(indices), labels_of(shard, indices))
    if is_cached and link.is_server:
        for stats, sums in zip(local.per_extractor, cache.read() or [], strict=True):
            stats.load_sums(sums)
    total = local.finish(link)
    if link.is_server and not is_cached:
        cache.write([stats.pack_sums() for stats in total.per_extractor])
    return total


def _draw(shard: Shard, count: int, seed: int, device: int) -> NDArray[np.int64]:
    """Draw different images of a device: their indices, in increasing order."""
    stream = numpy_stream(seed, Purpose.REAL_SCORE, device)
    return np.sort(stream.choice(len(shard), count, replace=False))


def labels_of(shard: Shard, indices: Labels) -> Labels | None:
    """Return the labels of images by index; None if there are none."""
    return None if shard.labels is None else np.asarray(shard.labels)[indices]


def heldout_stats(
    link: Link, real: RealImages, empty: FeatureStats, *, samples: int
) -> FeatureStats:
    """Return this rank's part of the statistics of `samples` held-out images.

    empty: the statistics to which they are added.
    """
    if real.heldout is not None:
        chosen = real.heldout.even_indices(samples)
        rank, size = (link.rank, link.size) if real.heldout_everywhere else (0, 1)
        for start in range(rank * BLOCK, samples, size * BLOCK):
            indices = chosen[start : start + BLOCK]
            images, labels = real.heldout.take(indices), labels_of(real.heldout, indices)
            empty.accumulate(images, labels, row=start)
    return empty

"""Trains the scores' extractor on the shards just written, and stores it beside them.

A classifier where there are classes, principal components where there are none. It sees images
by their order in the source, so that all partitions of a data set with one seed share one
extractor, and scores on them can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.components import find_components
from fedgan_mpi.data import HELDOUT, Images, Labels, Manifest, Shard, read_shard, shard_name
from fedgan_mpi.errors import UserError
from fedgan_mpi.evaluation.extractor_file import write_arrays
from fedgan_mpi.files import sha256_of
from fedgan_mpi.random_streams import Purpose, numpy_stream
from fedgan_mpi.training.environment import importing

EXTRACTOR = "features.safetensors"
KINDS = ("auto", "classifier", "pca", "none")
# Of a large set, a random part: it teaches a small classifier nearly all that it can learn, and
# memory and time stay bounded.
MOST_IMAGES = 10_000
MOST_FOR_COMPONENTS = 2048
MOST_BYTES = 64 * 2**20
BAR = 0.1
"""A classifier must close this share of the gap between always naming the most frequent class and
being always right."""


def write_extractor(out: Path, manifest: Manifest, kind: str, force: bool) -> dict[str, Any]:
    """Train and write it; gives the keys of shards.json that describe it.

    kind: one of KINDS; auto takes a classifier for two or more classes, else principal components.
    Raises UserError where a classifier is asked for without classes, or names fewer held-out images
    rightly than BAR wants, unless forced.
    """
    if kind == "none" or manifest.heldout is None:
        return {"features": None}  # there are no scores without held-out images
    if kind == "auto":
        kind = "classifier" if len(manifest.class_names) > 1 else "pca"
    if kind == "classifier" and not manifest.class_names:
        raise UserError("--features is classifier, but the images have no classes; use pca")
    shards = [
        read_shard(out / shard_name(k), image_shape=manifest.image_shape, in_memory=False)
        for k in range(1, manifest.devices + 1)
    ]
    most = MOST_FOR_COMPONENTS if kind == "pca" else MOST_IMAGES
    images, labels = sample(shards, manifest.seed, most)
    accuracy = None
    if kind == "pca":
        arrays = find_components(images)
        width = arrays["directions"].shape[1]
        write_arrays(
            out / EXTRACTOR, arrays, kind=kind, image_shape=manifest.image_shape, width=width
        )
    else:
        with importing():
            from fedgan_mpi.evaluation import features  # torch is slow to import, and large

        assert labels is not None
        classes = len(manifest.class_names)
        network = features.train_classifier(images, labels, classes=classes, seed=manifest.seed)
        accuracy = _check(network, out / HELDOUT, manifest, force)
        features.write_extractor(out / EXTRACTOR, network, accuracy)
    sha256 = sha256_of(out / EXTRACTOR)
    return {"features": EXTRACTOR, "features_sha256": sha256, "features_accuracy": accuracy}


def sample(shards: Sequence[Shard], seed: int, most: int) -> tuple[Images, Labels | None]:
    """At most so many images of all shards, chosen at random, in the order of the source."""
    indices = np.concatenate([shard.indices for shard in shards])
    image_bytes = int(np.prod(shards[0].images.shape[1:]))
    count = min(len(indices), most, max(MOST_BYTES // image_bytes, 1))
    stream = numpy_stream(seed, Purpose.CLASSIFIER, 1)
    order = np.argsort(indices)[np.sort(stream.permutation(len(indices))[:count])]
    images = np.empty((count, *shards[0].images.shape[1:]), np.uint8)
    first = 0
    for shard in shards:
        mine = np.flatnonzero((order >= first) & (order < first + len(shard)))
        if len(mine):
            images[mine] = shard.take(order[mine] - first)
        first += len(shard)
    labels = [shard.labels for shard in shards if shard.labels is not None]
    return images, np.concatenate(labels)[order] if labels else None


def _check(network: Any, path: Path, manifest: Manifest, force: bool) -> float:
    """The held-out accuracy. Raises UserError where it is below the bar and not forced."""
    from fedgan_mpi.evaluation.features import accuracy

    heldout = read_shard(path, image_shape=manifest.image_shape, in_memory=False)
    assert heldout.labels is not None
    count = min(len(heldout), MOST_IMAGES)
    chosen = np.sort(
        numpy_stream(manifest.seed, Purpose.CLASSIFIER, 2).permutation(len(heldout))[:count]
    )
    labels = heldout.labels[chosen]
    parts = np.array_split(chosen, 1 + count // 256)
    reached = accuracy(network, ((heldout.take(part), heldout.labels[part]) for part in parts))
    guessing = float(np.bincount(labels).max() / count)
    bar = guessing + BAR * (1 - guessing)
    if reached < bar and not force:
        raise UserError(
            f"the scores' classifier names {reached:.1%} of {count} held-out images rightly, but "
            f"must reach {bar:.1%} (guessing: {guessing:.1%}); the shards in {path.parent} are "
            "whole: repeat the command with --features pca, or with --force to keep it"
        )
    return reached

"""Trains the feature extractor for scores on the written shards and stores it in their directory.

The extractor is a classifier, or principal components for images without classes. It is trained on
a sample in the order of the source. All partitions of a data set with the same seed therefore share
one extractor, and their scores are comparable.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.pca import fit_pca
from fedgan_mpi.data import HELDOUT, Images, Labels, Manifest, Shard, read_shard, shard_name
from fedgan_mpi.errors import UserError
from fedgan_mpi.evaluation.extractor_file import write_arrays
from fedgan_mpi.files import sha256_of
from fedgan_mpi.random_streams import Purpose, numpy_stream

EXTRACTOR = "features.safetensors"
KINDS = ("auto", "classifier", "pca", "none")
# A random part of a large data set suffices for a small classifier and bounds memory and time.
MAX_IMAGES = 10_000
MAX_PCA_IMAGES = 2048
MAX_BYTES = 64 * 2**20
MIN_GAP_CLOSED = 0.1
"""Share of the gap between majority guessing and perfect accuracy that a classifier must close."""


def write_extractor(out: Path, manifest: Manifest, kind: str, force: bool) -> dict[str, Any]:
    """Train and write the extractor. Return its entries for shards.json.

    `kind` is one of KINDS; `auto` selects a classifier if there are at least two classes, else
    PCA. Without held-out images there are no scores, and nothing is written. Raises UserError for
    a classifier without classes, or with low held-out accuracy unless `force` is set.
    """
    if kind == "none" or manifest.heldout is None:
        return {"features": None}
    if kind == "auto":
        kind = "classifier" if len(manifest.class_names) > 1 else "pca"
    if kind == "classifier" and not manifest.class_names:
        raise UserError("--features is classifier, but the images have no classes; use pca")
    shards = [
        read_shard(
            out / shard_name(k),
            image_shape=manifest.image_shape,
            dtype=manifest.dtype,
            in_memory=False,
        )
        for k in range(1, manifest.devices + 1)
    ]
    most = MAX_PCA_IMAGES if kind == "pca" else MAX_IMAGES
    images, labels = sample_images(shards, manifest.seed, most)
    accuracy = None
    if kind == "pca":
        arrays = fit_pca(images)
        width = arrays["directions"].shape[1]
        write_arrays(
            out / EXTRACTOR, arrays, kind=kind, image_shape=manifest.image_shape, width=width
        )
    else:
        from fedgan_mpi.evaluation import features  # imports torch, which is slow and large

        gc.freeze()  # garbage collections would search torch's half a million objects
        assert labels is not None
        classes = len(manifest.class_names)
        network = features.train_classifier(images, labels, classes=classes, seed=manifest.seed)
        accuracy = _check_accuracy(network, out / HELDOUT, manifest, force)
        features.write_extractor(out / EXTRACTOR, network, accuracy)
    sha256 = sha256_of(out / EXTRACTOR)
    return {"features": EXTRACTOR, "features_sha256": sha256, "features_accuracy": accuracy}


def sample_images(shards: Sequence[Shard], seed: int, most: int) -> tuple[Images, Labels | None]:
    """Sample at most `most` images and 64 MiB of all shards, in the order of the source."""
    indices = np.concatenate([shard.indices for shard in shards])
    dtype = shards[0].images.dtype
    image_bytes = int(np.prod(shards[0].images.shape[1:])) * dtype.itemsize
    count = min(len(indices), most, max(MAX_BYTES // image_bytes, 1))
    stream = numpy_stream(seed, Purpose.CLASSIFIER, 1)
    order = np.argsort(indices)[np.sort(stream.permutation(len(indices))[:count])]
    images = np.empty((count, *shards[0].images.shape[1:]), dtype)
    first = 0
    for shard in shards:
        rows = np.flatnonzero((order >= first) & (order < first + len(shard)))
        if len(rows):
            images[rows] = shard.take(order[rows] - first)
        first += len(shard)
    labels = [shard.labels for shard in shards if shard.labels is not None]
    return images, np.concatenate(labels)[order] if labels else None


def _check_accuracy(network: Any, path: Path, manifest: Manifest, force: bool) -> float:
    """Return the held-out accuracy. Raises UserError if it is too low and `force` is not set."""
    from fedgan_mpi.evaluation.features import accuracy

    heldout = read_shard(
        path, image_shape=manifest.image_shape, dtype=manifest.dtype, in_memory=False
    )
    assert heldout.labels is not None
    count = min(len(heldout), MAX_IMAGES)
    stream = numpy_stream(manifest.seed, Purpose.CLASSIFIER, 2)
    chosen = np.sort(stream.permutation(len(heldout))[:count])
    parts = np.array_split(chosen, 1 + count // 256)
    reached = accuracy(network, ((heldout.take(part), heldout.labels[part]) for part in parts))
    guessing = float(np.bincount(heldout.labels[chosen]).max() / count)
    required = guessing + MIN_GAP_CLOSED * (1 - guessing)
    if reached < required and not force:
        raise UserError(
            f"the feature classifier has accuracy {reached:.1%} on {count} held-out images, but "
            f"needs {required:.1%} (guessing: {guessing:.1%}); the shards in {path.parent} are "
            "complete: repeat the command with --features pca, or with --force to keep it"
        )
    return reached

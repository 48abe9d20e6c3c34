"""Writes a directory of shards: the devices', the held-out images, the scores' extractor, and
shards.json last."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from data_prep.partition import PARTITIONS, Indices, hold_out
from data_prep.sources import Source
from fedgan_mpi.errors import UserError
from fedgan_mpi.shards import FORMAT_VERSION, HELDOUT, Manifest, shard_name, write_shard

EXTRACTOR = "features.safetensors"
HELDOUT_SHARE = 0.2


def plan(
    source: Source, *, devices: int, partition: str, seed: int
) -> tuple[list[Indices], Indices]:
    """Who holds what: indices into the source, a list a device, and the held-out ones."""
    train, heldout = hold_out(len(source.images), HELDOUT_SHARE, seed)
    return PARTITIONS[partition](train, devices, seed), heldout


def prepare(
    source: Source, out: Path, *, devices: int, partition: str = "iid", seed: int = 0
) -> Manifest:
    """Write the shards of a source into a new directory. Raises UserError where `out` exists or
    cannot be made.

    shards.json is written last: a directory without it is not a set of shards.
    """
    parts, heldout = plan(source, devices=devices, partition=partition, seed=seed)
    try:
        out.mkdir(parents=True)
    except FileExistsError:
        raise UserError(f"{out} exists already; shards are never overwritten") from None
    except OSError as error:
        raise UserError(f"{out} cannot be made: {error.strerror}") from None

    shape = source.images.shape[1:]
    common = {
        "dataset": source.name,
        "image_shape": [int(n) for n in shape],
        "class_names": source.class_names,
        "partition": {"name": partition},
        "seed": seed,
        "devices": devices,
    }

    def write(name: str, indices: Indices, device: int) -> str:
        pixels, labels = source.images[indices], source.labels[indices]
        return write_shard(out / name, pixels, labels, indices, {**common, "device": device})

    hashes = [write(shard_name(k), indices, k) for k, indices in enumerate(parts, start=1)]
    write(HELDOUT, heldout, 0)
    _write_extractor(source, parts, heldout, out, seed)
    classes = len(source.class_names)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        dataset=source.name,
        image_shape=(int(shape[0]), int(shape[1]), int(shape[2])),
        class_names=source.class_names,
        partition={"name": partition},
        seed=seed,
        devices=devices,
        images=[len(indices) for indices in parts],
        histograms=[np.bincount(source.labels[i], minlength=classes).tolist() for i in parts],
        pixels_sha256=hashes,
        sha256=hashlib.sha256("".join(hashes).encode()).hexdigest(),
        heldout=HELDOUT,
        heldout_images=len(heldout),
        features=EXTRACTOR,
    )
    manifest.write(out)
    return manifest


def _write_extractor(
    source: Source, parts: list[Indices], heldout: Indices, out: Path, seed: int
) -> None:
    # torch is slow to import; a run that only plans never comes here.
    from fedgan_mpi.evaluation.features import accuracy, train_classifier, write_classifier

    train = np.sort(np.concatenate(parts))
    images, labels = source.images, source.labels
    network = train_classifier(
        images[train], labels[train], classes=len(source.class_names), seed=seed
    )
    write_classifier(out / EXTRACTOR, network, accuracy(network, images[heldout], labels[heldout]))

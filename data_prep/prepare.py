"""Writes a directory of shards: the devices', the held-out images, the scores' extractor, and
shards.json last.

A directory without shards.json is not a set of shards.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from tqdm import tqdm

from data_prep.decode import Decode, Decoded, Decoder, decode_here
from data_prep.directory import filling, finish
from data_prep.extractor import write_extractor
from data_prep.partition import Iid, Partition, hold_out
from data_prep.sources.base import ArraySource, Indices, Source
from fedgan_mpi.data import (
    FORMAT_VERSION,
    HELDOUT,
    Block,
    Manifest,
    read_shard,
    shard_name,
    write_blocks,
)
from fedgan_mpi.errors import UserError
from fedgan_mpi.files import writing

HELDOUT_SHARE = 0.2


def plan(
    source: Source,
    *,
    devices: int,
    seed: int,
    partition: Partition | None = None,
    heldout_share: float | None = None,
) -> tuple[list[Indices], Indices]:
    """Who holds what: indices into the source, a list a device, and the held-out ones.

    Held out is what the data set's authors set aside, or else a random share. Without a partition:
    equal random parts. Raises UserError where a share is asked for, but there is what was set
    aside.
    """
    if source.heldout is None:
        share = HELDOUT_SHARE if heldout_share is None else heldout_share
        train, heldout = hold_out(len(source), share, seed)
    elif heldout_share is not None:
        reason = f"{source.name} has held-out images of its own"
        raise UserError(f"--heldout-share is {heldout_share:g}, but {reason}; leave it out")
    else:
        heldout = source.heldout
        train = np.setdiff1d(np.arange(len(source)), heldout)
    return (partition or Iid()).cut(source, train, devices, seed), heldout


def prepare(
    source: Source,
    out: Path,
    *,
    devices: int,
    seed: int = 0,
    partition: Partition | None = None,
    heldout_share: float | None = None,
    size: int | None = None,
    channels: int | None = None,
    skip_bad: int = 0,
    features: str = "auto",
    force: bool = False,
    origin: str = "",
    decode: Decode = decode_here,
    show_progress: bool = False,
) -> Manifest:
    """Write the shards of a source into a new directory, or go on with an interrupted one.

    size, channels: of the images, by default the source's own. skip_bad: so many unreadable images
    are left out rather than an error. features and force: see extractor.py. origin: where the
    source was read from, to recognise an interrupted run. Raises UserError where `out` exists or
    cannot be written, or the images do not allow what is asked for.
    """
    partition = partition or Iid()
    parts, heldout = plan(
        source, devices=devices, seed=seed, partition=partition, heldout_share=heldout_share
    )
    shape = image_shape(source, size, channels)
    common = {
        "dataset": source.name,
        "image_shape": shape,
        "class_names": source.class_names,
        "partition": partition.describe(),
        "seed": seed,
        "devices": devices,
    }
    work = {shard_name(k): (k, indices) for k, indices in enumerate(parts, start=1)}
    if len(heldout):
        work[HELDOUT] = (0, heldout)
    settings = {**common, "origin": origin, "cut_sha256": _sha256([*parts, heldout])}
    needed = sum(len(indices) for _, indices in work.values()) * int(np.prod(shape))
    decoder = Decoder(source=source, size=size or source.default_size, image_shape=shape)
    with filling(out, settings, needed):
        _write_shards(decoder, out, work, common, skip_bad, decode, show_progress)

    # Below, what is wrong concerns the extractor alone: the shards stay, and the same command with
    # another choice of features goes on from here.
    with writing(out):
        manifest = _describe(out, common, work, source.rejected)
        manifest = replace(manifest, **write_extractor(out, manifest, features, force))
        manifest.write(out)
        finish(out)
    return manifest


def image_shape(
    source: Source, size: int | None = None, channels: int | None = None
) -> tuple[int, int, int]:
    """Channels, height and width of the shards' images."""
    size = size or source.default_size
    channels = channels or source.channels
    if size is not None:
        return channels, size, size
    assert isinstance(source, ArraySource), "images of many sizes need a default size"
    return channels, *source.image_shape[1:]


def _write_shards(
    decoder: Decoder,
    out: Path,
    work: dict[str, tuple[int, Indices]],
    common: dict[str, Any],
    skip_bad: int,
    decode: Decode,
    show_progress: bool,
) -> None:
    """Write those of the shards that are not there yet."""
    missing = {name: todo for name, todo in work.items() if not (out / name).exists()}
    skipped = Skipped(skip_bad)
    skipped.add(decoder.source.rejected)
    for name in work.keys() - missing.keys():
        skipped.add(_skipped(out / name))
    # One stream through all shards: whoever decodes never waits for a shard to be finished.
    blocks = [block for _, indices in missing.values() for block in decoder.blocks(indices)]
    stream = decode(decoder, blocks)
    total = sum(len(block) for block in blocks)
    with tqdm(total=total, unit="image", disable=None if show_progress else True) as bar:
        for name, (device, indices) in missing.items():
            bad: list[str] = []
            mine = islice(stream, len(decoder.blocks(indices)))
            write_blocks(
                out / name,
                _blocks(mine, decoder.source, skipped, bad, bar),
                rows=len(indices),
                image_shape=decoder.image_shape,
                attributes={**common, "device": device, "skipped": bad},
            )


class Skipped:
    """Counts images that cannot be read, up to how many may be left out."""

    def __init__(self, allowed: int) -> None:
        self._allowed, self._count = allowed, 0

    def add(self, sentences: Sequence[str]) -> None:
        """Raises UserError where they are too many."""
        self._count += len(sentences)
        if self._count > self._allowed:
            others = f" (and {self._count - 1} others)" if self._count > 1 else ""
            raise UserError(
                f"{sentences[-1]}{others}; mend or remove such images, or leave out up to N of "
                "them with --skip-bad N"
            )


def _blocks(
    decoded: Iterable[Decoded], source: Source, skipped: Skipped, bad: list[str], bar: tqdm
) -> Iterator[Block]:
    """One shard's blocks with their labels; what cannot be read is added to `bad`."""
    images = 0
    for block in decoded:
        skipped.add(block.bad)
        bad += block.bad
        images += len(block.images)
        bar.update(len(block.images) + len(block.bad))
        labels = None if source.labels is None else source.labels[block.indices]
        yield Block(images=block.images, labels=labels, indices=block.indices)
    if not images:
        raise UserError(f"a device is left without any image that can be read: {bad[0]}")


def _skipped(path: Path) -> list[str]:
    with h5py.File(path, "r") as file:
        return list(json.loads(file.attrs["skipped"]))


def _describe(
    out: Path,
    common: dict[str, Any],
    work: dict[str, tuple[int, Indices]],
    rejected: Sequence[str],
) -> Manifest:
    """What the written shards say of themselves."""
    shape, classes = common["image_shape"], len(common["class_names"])
    there = {name: read_shard(out / name, image_shape=shape, in_memory=False) for name in work}
    heldout = there.pop(HELDOUT, None)
    shards = list(there.values())
    hashes = [shard.sha256 for shard in shards]
    return Manifest(
        format_version=FORMAT_VERSION,
        **common,
        images=[len(shard) for shard in shards],
        histograms=[
            [] if shard.labels is None else np.bincount(shard.labels, minlength=classes).tolist()
            for shard in shards
        ],
        pixels_sha256=hashes,
        sha256=hashlib.sha256("".join(hashes).encode()).hexdigest(),
        heldout=HELDOUT if heldout else None,
        heldout_images=len(heldout) if heldout else 0,
        heldout_sha256=heldout.sha256 if heldout else None,
        features=None,
        skipped=[*rejected, *(line for name in work for line in _skipped(out / name))],
    )


def _sha256(parts: list[Indices]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part.astype("<i8").tobytes())
    return digest.hexdigest()

"""Writes a shard directory: the devices' shards, the held-out images, the feature extractor, and
shards.json last. A directory without shards.json is incomplete.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace
from tqdm import tqdm

from data_prep.decode import Decode, DecodedBlock, Decoder, decode_serially
from data_prep.directory import locked, mark_finished, output_directory
from data_prep.extractor import write_extractor
from data_prep.limits import DEFAULT_LIMITS, Limits
from data_prep.partitions import Iid, Partition
from data_prep.partitions.base import recorded
from data_prep.pictures.settings import Depth, NeedsRange
from data_prep.resize import Fit
from data_prep.sources.base import ArraySource, Indices, Source
from data_prep.split import assign_images
from data_prep.value_range import Notes, find_range, set_pictures
from fedgan_mpi.data import (
    FORMAT_VERSION,
    HELDOUT,
    Block,
    Manifest,
    PixelType,
    read_shard,
    shard_name,
    write_blocks,
)
from fedgan_mpi.data.shard import open_hdf5
from fedgan_mpi.errors import UserError
from fedgan_mpi.files import explain_write_errors
from fedgan_mpi.schema import check, parse_json


def prepare(
    source: Source,
    out: Path,
    *,
    devices: int,
    seed: int = 0,
    partition: Partition | None = None,
    heldout_share: float | None = None,
    size: int | tuple[int, int] | None = None,
    fit: Fit = "crop",
    channels: int | None = None,
    skip_bad: int = 0,
    features: str = "auto",
    force: bool = False,
    value_range: tuple[float, float] | None = None,
    background: tuple[int, int, int] | None = None,
    depth: Depth = 8,
    limits: Limits = DEFAULT_LIMITS,
    origin: str = "",
    decode: Decode = decode_serially,
    plugin: str | None = None,
    warn: Callable[[str], None] = lambda sentence: None,
    show_progress: bool = False,
) -> Manifest:
    """Write the shards of a source to a new directory, or resume an interrupted run.

    `size` (pixels of a square, or height and width) and `channels` default to the source's. `fit`
    goes to `fit_image`, `features` and `force` to `write_extractor`, and `background` to
    PictureSettings. `value_range` goes there too; without it, images of more than 8 bits get the
    range of the data set. `depth`: bits of a pixel. `skip_bad` is the largest number of unreadable
    images to skip. `limits` bound the decoding of one image. `warn` is called with sentences about
    the images. `origin` names the source's location; an interrupted run resumes only with the same
    origin. `plugin` is the name under which `data_prep.plugins` loads the source's class in another
    process. Raises UserError if `out` exists or cannot be written, or if the images do not allow
    the options.
    """
    partition = partition or Iid()
    set_pictures(source, value_range, background, depth)
    parts, heldout = assign_images(
        source, devices=devices, seed=seed, partition=partition, heldout_share=heldout_share
    )
    shape = image_shape(source, size, channels)
    common = {
        "dataset": source.name,
        "image_shape": shape,
        "class_names": source.class_names,
        "partition": recorded(partition),
        "seed": seed,
        "devices": devices,
    }
    contents = {shard_name(k): (k, indices) for k, indices in enumerate(parts, start=1)}
    if len(heldout):
        contents[HELDOUT] = (0, heldout)
    settings = {
        **common,
        "origin": origin,
        "range": value_range,
        "background": background,
        "fit": fit,
        "depth": depth,
        "cut_sha256": _sha256([*parts, heldout]),
    }
    decoder = Decoder(
        source=source,
        size=size or source.default_size,
        image_shape=shape,
        fit=fit,
        limits=limits,
        plugin=plugin,
    )
    bytes_needed = sum(len(indices) for _, indices in contents.values()) * int(
        np.prod(shape) * np.dtype(decoder.dtype).itemsize
    )
    with locked(out) as created:
        with output_directory(out, settings, bytes_needed, created=created):
            try:
                _write_shards(decoder, out, contents, common, skip_bad, decode, warn, show_progress)
            except NeedsRange:
                # Complete shards have images of 8 bits, which the range does not change.
                found = find_range(decoder, decode, show_progress)
                source.pictures = dataclasses.replace(source.pictures, value_range=found)
                _write_shards(decoder, out, contents, common, skip_bad, decode, warn, show_progress)

        # An error below concerns the extractor alone. The shards remain, and the same command with
        # other --features resumes here.
        with explain_write_errors(out):
            manifest = _describe_shards(out, common, decoder.dtype, contents, source.rejected)
            manifest = replace(manifest, **write_extractor(out, manifest, features, force))
            manifest.write(out)
            mark_finished(out)
    return manifest


def image_shape(
    source: Source, size: int | tuple[int, int] | None = None, channels: int | None = None
) -> tuple[int, int, int]:
    """Return channels, height and width of the shards' images."""
    size = size or source.default_size
    if channels not in (None, source.channels) and source.channels not in (1, 3):
        raise UserError(
            f"--channels is {channels}, but the images of {source.name} have {source.channels} "
            "channels, neither gray nor RGB; remove --channels"
        )
    channels = channels or source.channels
    if size is not None:
        return channels, *((size, size) if isinstance(size, int) else size)
    if not isinstance(source, ArraySource):
        raise UserError(f"{source.name} has images of different sizes; add --size PX")
    return channels, *source.image_shape[1:]


def _write_shards(
    decoder: Decoder,
    out: Path,
    contents: dict[str, tuple[int, Indices]],
    common: dict[str, Any],
    skip_bad: int,
    decode: Decode,
    warn: Callable[[str], None],
    show_progress: bool,
) -> None:
    """Write the shards that do not exist yet. `contents` maps a file to its device and images.

    Raises NeedsRange.
    """
    notes = Notes()
    missing = {name: shard for name, shard in contents.items() if not (out / name).exists()}
    skipped = _SkipCounter(skip_bad)
    skipped.add(decoder.source.rejected)
    for name in contents.keys() - missing.keys():
        skipped.add(_skipped_images(out / name))
    # One sequence of blocks for all shards keeps the decoders busy between two shards.
    blocks = [block for _, indices in missing.values() for block in decoder.blocks(indices)]
    decoded = decode(decoder, blocks)
    total = sum(len(block) for block in blocks)
    with tqdm(total=total, unit="image", disable=None if show_progress else True) as bar:
        for name, (device, indices) in missing.items():
            errors: list[str] = []
            own_blocks = islice(decoded, len(decoder.blocks(indices)))
            write_blocks(
                out / name,
                _add_labels(own_blocks, decoder.source, skipped, errors, notes, bar),
                rows=len(indices),
                image_shape=decoder.image_shape,
                dtype=decoder.dtype,
                attributes={
                    **common,
                    "device": device,
                    "skipped": errors,
                    "range": decoder.source.pictures.value_range,
                },
            )
    for sentence in notes.sentences(decoder.source):
        warn(sentence)


class _SkipCounter:
    """Counts unreadable images and limits their number."""

    def __init__(self, limit: int) -> None:
        self._limit, self._count = limit, 0

    def add(self, errors: Sequence[str]) -> None:
        """Count one image per error message. Raises UserError above the limit."""
        self._count += len(errors)
        if self._count > self._limit:
            others = f" (and {self._count - 1} others)" if self._count > 1 else ""
            raise UserError(
                f"{errors[-1]}{others}; repair or remove such images, or skip up to N of them "
                "with --skip-bad N"
            )


def _add_labels(
    decoded: Iterable[DecodedBlock],
    source: Source,
    skipped: _SkipCounter,
    errors: list[str],
    notes: Notes,
    bar: tqdm,
) -> Iterator[Block]:
    """Yield one shard's blocks with labels, and append the errors of unreadable images.

    Raises UserError if no image of the shard is readable, and NeedsRange.
    """
    images = 0
    for block in decoded:
        if block.needs_range:
            raise NeedsRange
        notes.add(block)
        skipped.add(block.errors)
        errors += block.errors
        images += len(block.images)
        bar.update(len(block.images) + len(block.errors))
        labels = None if source.labels is None else source.labels[block.indices]
        yield Block(images=block.images, labels=labels, indices=block.indices)
    if not images:
        raise UserError(f"a device has no readable image: {errors[0]}")


def _skipped_images(path: Path) -> list[str]:
    with open_hdf5(path) as file:
        return check(parse_json(file.attrs["skipped"]), list[str])


def _range(path: Path) -> tuple[float, float] | None:
    with open_hdf5(path) as file:
        found = parse_json(file.attrs.get("range", "null"))
    return None if found is None else check(found, tuple[float, float])


def _describe_shards(
    out: Path,
    common: dict[str, Any],
    dtype: PixelType,
    contents: dict[str, tuple[int, Indices]],
    rejected: Sequence[str],
) -> Manifest:
    """Build the manifest, without features, from the written shards."""
    shape, classes = common["image_shape"], len(common["class_names"])
    written = {
        name: read_shard(out / name, image_shape=shape, dtype=dtype, in_memory=False)
        for name in contents
    }
    heldout = written.pop(HELDOUT, None)
    shards = list(written.values())
    hashes = [shard.sha256 for shard in shards]
    ranges = [found for name in contents if (found := _range(out / name)) is not None]
    return Manifest(
        format_version=FORMAT_VERSION,
        **common,
        dtype=dtype,
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
        range=ranges[0] if ranges else None,
        skipped=[*rejected, *(error for name in contents for error in _skipped_images(out / name))],
    )


def _sha256(parts: list[Indices]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part.astype("<i8").tobytes())
    return digest.hexdigest()

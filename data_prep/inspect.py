"""Shows who holds what, and whether every file still is what it was when it was written."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fedgan_mpi.data import Manifest, Shard, check_pixels, read_shard, shard_name
from fedgan_mpi.errors import UserError
from fedgan_mpi.files import sha256_of

_LEVELS = " ▁▂▃▄▅▆▇█"


def inspect(directory: Path, picture: Path | None) -> int:
    """Print the table of devices, verify every checksum, and draw the picture that is asked for.
    1 where a file is missing, damaged or not the one that shards.json describes."""
    manifest = Manifest.read(directory)
    print(table(directory, manifest))
    problems = list(check(directory, manifest))
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        return 1
    files = manifest.devices + (manifest.heldout is not None) + (manifest.features is not None)
    print(f"{files} files verified")
    if picture is not None:
        from data_prep.picture import draw  # matplotlib is slow to import

        draw(directory, manifest, picture)
        print(picture)
    return 0


def table(directory: Path, manifest: Manifest) -> str:
    """A line a device: images, classes, bytes, and how often each class occurs, as bars."""
    shape = "×".join(map(str, manifest.image_shape))
    partition = ", ".join(f"{key} {value}" for key, value in manifest.partition.items())
    lines = [
        f"{manifest.dataset}, {shape}, seed {manifest.seed}, partition: {partition}",
        f"{'device':>8} {'images':>9} {'classes':>8} {'bytes':>14}  images of each class",
    ]
    rows = [
        (str(device), images, histogram, directory / shard_name(device))
        for device, (images, histogram) in enumerate(
            zip(manifest.images, manifest.histograms, strict=True), start=1
        )
    ]
    for name, images, histogram, path in rows:
        size = f"{path.stat().st_size:,}" if path.exists() else "missing"
        classes = int(np.count_nonzero(histogram)) if histogram else "-"
        lines.append(f"{name:>8} {images:>9,} {classes:>8} {size:>14}  {bars(histogram)}")
    total = f"{'all':>8} {sum(manifest.images):>9,}"
    if manifest.heldout is not None:
        total += f", and {manifest.heldout_images:,} held out"
    if manifest.skipped:
        total += f", {len(manifest.skipped)} unreadable left out"
    lines.append(total)
    if manifest.features is not None:
        accuracy = manifest.features_accuracy
        kind = "components" if accuracy is None else f"classifier, {accuracy:.1%} right"
        lines.append(f"features for scores: {kind}")
    return "\n".join(lines)


def bars(histogram: list[int]) -> str:
    """A character a class, as high as its share of the most frequent one; a class that occurs at
    all is never blank."""
    most = max(histogram, default=0)
    return "".join(_LEVELS[-(-8 * count // most) if most else 0] for count in histogram)


def check(directory: Path, manifest: Manifest) -> Iterator[str]:
    """A sentence for every file that is not what shards.json describes."""
    held: list[np.ndarray] = []
    for device in range(1, manifest.devices + 1):
        try:
            shard = _open(directory, shard_name(device), manifest)
            manifest.check_shard(shard, device)
            held.append(shard.indices)
        except UserError as error:
            yield str(error)
    if manifest.heldout is not None:
        try:
            heldout = _open(directory, manifest.heldout, manifest)
            held.append(heldout.indices)
            manifest.check_heldout(heldout)
        except UserError as error:
            yield str(error)
    indices = np.concatenate(held) if held else np.empty(0, np.int64)
    if len(np.unique(indices)) < len(indices):
        yield f"{directory}: some image is held by two devices, or by one and held out"
    if hashlib.sha256("".join(manifest.pixels_sha256).encode()).hexdigest() != manifest.sha256:
        yield f"{directory}/shards.json: its SHA-256 is not that of the shards it lists"
    if manifest.features is not None and manifest.features_sha256 is not None:
        path = directory / manifest.features
        if not path.exists():
            yield f"{path} is missing"
        elif sha256_of(path) != manifest.features_sha256:
            yield f"{path} does not match its recorded SHA-256; the file was changed"


def _open(directory: Path, name: str, manifest: Manifest) -> Shard:
    path = directory / name
    shard = read_shard(path, image_shape=manifest.image_shape, in_memory=False)
    try:
        check_pixels(shard)
    except OSError as error:
        raise UserError(f"{path} is damaged: {error}") from None
    return shard

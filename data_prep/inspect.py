"""Lists the contents of a shard directory and verifies its files."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fedgan_mpi.data import Manifest, Shard, check_pixels, read_shard, shard_name
from fedgan_mpi.errors import UserError
from fedgan_mpi.files import sha256_of

_BAR_HEIGHTS = " ▁▂▃▄▅▆▇█"


def inspect(directory: Path, picture: Path | None) -> int:
    """Print the table of devices, verify all files, and draw `picture` if it is given.

    Returns the exit status: 1 if a file is missing, damaged or different from its description in
    shards.json.
    """
    manifest = Manifest.read(directory)
    print(format_table(directory, manifest))
    problems = list(find_problems(directory, manifest))
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        return 1
    files = manifest.devices + (manifest.heldout is not None) + (manifest.features is not None)
    print(f"{files} files verified")
    if picture is not None:
        from data_prep.plot import plot_shards  # imports matplotlib, which is slow

        plot_shards(directory, manifest, picture)
        print(picture)
    return 0


def format_table(directory: Path, manifest: Manifest) -> str:
    """Return one line per device: images, classes, bytes, and bars for the class histogram."""
    shape = "×".join(map(str, manifest.image_shape))
    partition = ", ".join(f"{key} {value}" for key, value in manifest.partition.items())
    depth = ", 16 bits" if manifest.dtype == "uint16" else ""
    values = "" if manifest.range is None else ", values {:g} to {:g}".format(*manifest.range)
    lines = [
        f"{manifest.dataset}, {shape}{depth}, seed {manifest.seed}{values}, partition: {partition}",
        f"{'device':>8} {'images':>9} {'classes':>8} {'bytes':>14}  images of each class",
    ]
    counts = zip(manifest.images, manifest.histograms, strict=True)
    for device, (images, histogram) in enumerate(counts, start=1):
        path = directory / shard_name(device)
        size = f"{path.stat().st_size:,}" if path.exists() else "missing"
        classes = int(np.count_nonzero(histogram)) if histogram else "-"
        lines.append(f"{device:>8} {images:>9,} {classes:>8} {size:>14}  {format_bars(histogram)}")
    total = f"{'all':>8} {sum(manifest.images):>9,}"
    if manifest.heldout is not None:
        total += f", and {manifest.heldout_images:,} held out"
    if manifest.skipped:
        total += f", {len(manifest.skipped)} unreadable skipped"
    lines.append(total)
    if manifest.features is not None:
        accuracy = manifest.features_accuracy
        kind = "PCA" if accuracy is None else f"classifier, accuracy {accuracy:.1%}"
        lines.append(f"features for scores: {kind}")
    return "\n".join(lines)


def format_bars(histogram: list[int]) -> str:
    """Return one bar character per class, relative to the most frequent class.

    Rounds up, so only a class without images is blank.
    """
    most = max(histogram, default=0)
    return "".join(_BAR_HEIGHTS[-(-8 * count // most) if most else 0] for count in histogram)


def find_problems(directory: Path, manifest: Manifest) -> Iterator[str]:
    """Yield one sentence for each file that differs from its description in shards.json."""
    indices: list[np.ndarray] = []
    for device in range(1, manifest.devices + 1):
        try:
            path = directory / shard_name(device)
            shard = _read_verified(path, manifest, manifest.images[device - 1])
            manifest.check_shard(shard, device)
            indices.append(shard.indices)
        except UserError as error:
            yield str(error)
    if manifest.heldout is not None:
        try:
            path = directory / manifest.heldout
            heldout = _read_verified(path, manifest, manifest.heldout_images)
            indices.append(heldout.indices)
            manifest.check_heldout(heldout)
        except UserError as error:
            yield str(error)
    used = np.concatenate(indices) if indices else np.empty(0, np.int64)
    if len(np.unique(used)) < len(used):
        yield f"{directory}: two shards, or a shard and the held-out file, share an image"
    if hashlib.sha256("".join(manifest.pixels_sha256).encode()).hexdigest() != manifest.sha256:
        yield f"{directory}/shards.json: sha256 does not match the hashes in pixels_sha256"
    if manifest.features is not None and manifest.features_sha256 is not None:
        path = directory / manifest.features
        if not path.exists():
            yield f"{path} is missing"
        elif sha256_of(path) != manifest.features_sha256:
            yield f"{path} does not match its recorded SHA-256; the file was changed"


def _read_verified(path: Path, manifest: Manifest, rows: int) -> Shard:
    """Open a shard and verify its pixels. Raises UserError if they changed."""
    shard = read_shard(
        path, image_shape=manifest.image_shape, dtype=manifest.dtype, in_memory=False, rows=rows
    )
    try:
        check_pixels(shard)
    except OSError as error:
        raise UserError(f"{path} is damaged: {error}") from None
    return shard

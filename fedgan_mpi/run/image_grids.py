"""Writes generated images: as grids in PNG files, as an animated GIF, and as arrays."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image

from fedgan_mpi.data import Images, to_8_bits, white
from fedgan_mpi.errors import UserError
from fedgan_mpi.files import complete_or_absent, read_regular_file
from fedgan_mpi.run.png import encode_png

if TYPE_CHECKING:  # it imports torch, which is slow
    from fedgan_mpi.run.generator_file import TrainedGenerator

_MAX_FRAMES = 60
_FRAME_MILLISECONDS = 200
_GAP = 2  # pixels between and around enlarged images
_BACKGROUND = 40 / 255  # between black, 0, and white, 1
_MIN_SIZE = 64  # pixels; smaller images are enlarged by a whole factor to at least this size
_COLUMNS = 10  # of interpolations
_MAX_PICTURE = 2**30  # pixels
_GRID = re.compile(r"round_(\d{6,})\.png")


def grid(images: Images, *, columns: int | None = None) -> Images:
    """Return images as one picture, row by row: (H, W) in gray, or (H, W, 3).

    images: (N, C, H, W). Channels are colours if C = 3, and grey panels side by side otherwise.
    columns: None for a nearly square grid.
    """
    if images.shape[1] not in (1, 3):
        images = np.concatenate(list(images.transpose(1, 0, 2, 3)), axis=2)[:, None]
    count, channels, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    factor = max(1, math.ceil(_MIN_SIZE / max(height, width)))
    large = images.repeat(factor, axis=2).repeat(factor, axis=3)
    down, right = height * factor + _GAP, width * factor + _GAP
    shape = (channels, rows * down + _GAP, columns * right + _GAP)
    canvas = np.full(shape, round(_BACKGROUND * white(images.dtype)), images.dtype)
    for n, image in enumerate(large):
        y, x = (n // columns) * down + _GAP, (n % columns) * right + _GAP
        canvas[:, y : y + height * factor, x : x + width * factor] = image
    return canvas[0] if channels == 1 else canvas.transpose(1, 2, 0)


def write_grid(
    path: Path, images: Images, *, columns: int | None = None, stream: bool = False
) -> None:
    """Write images (N, C, H, W) as one PNG of their depth.

    columns: None for a nearly square grid. stream: see `complete_or_absent`.
    """
    with complete_or_absent(path, stream=stream) as temporary:
        temporary.write_bytes(encode_png(grid(images, columns=columns)))


def write_samples(
    generator: TrainedGenerator,
    path: Path,
    *,
    style: Literal["grid", "interpolation", "classes"],
    count: int,
    seed: int,
    label: int | None,
) -> None:
    """Write generated images to a file, a FIFO or a device: a grid, or the array `images`,
    (N, H, W, C), if its name ends with .npz.

    style: `grid` of independent samples, `interpolation` between two noise vectors per row, or
    `classes`, one per row. label: the class of a `grid`; None: classes as frequent as in the data.
    Raises UserError if a class is needed and the generator is unconditional.
    """
    generator.check_count(count)
    most = _MAX_PICTURE // (_MIN_SIZE + _GAP) ** 2
    if count > most and path.suffix != ".npz":
        raise UserError(f"count is {count}, but must be at most {most}, for one picture")
    columns: int | None = None
    if style == "interpolation":
        columns = _COLUMNS
        images = generator.interpolate(math.ceil(count / columns), columns, seed=seed)
    elif style == "classes":
        labels = range(len(generator.class_names))
        columns = max(1, count // max(len(labels), 1))
        rows = [generator(columns, seed=seed, label=row_label) for row_label in labels]
        images = np.concatenate(rows)
    else:
        images = generator(count, seed=seed, label=label)
    if path.suffix == ".npz":
        with complete_or_absent(path, stream=True) as temporary, temporary.open("wb") as file:
            np.savez(file, images=images.transpose(0, 2, 3, 1))
    else:
        write_grid(path, images, columns=columns, stream=True)


def grids_of(run: Path) -> list[Path]:
    """Return the sample grids of a run, in the order of rounds. Other files are ignored."""
    found = {
        int(match[1]): path
        for path in (run / "samples").glob("round_*.png")
        if (match := _GRID.fullmatch(path.name)) and path.is_file()
    }
    return [found[round] for round in sorted(found)]


def round_of_grid(grid: Path) -> int:
    """Return the number of completed rounds in a grid's file name, round_NNNNNN.png."""
    return int(grid.stem.removeprefix("round_"))


def write_animation(path: Path, grids: Sequence[Path]) -> None:
    """Write an animated GIF of up to 60 grids and the last one, which is shown longer.

    Raises UserError if there is no grid, or if a file is not a grid of this run.
    """
    if not grids:
        raise UserError("there is no sample grid")
    step = math.ceil(len(grids) / _MAX_FRAMES)
    frames = [_open_grid(grid) for grid in [*grids[:-1:step], grids[-1]]]
    for grid, frame in zip([*grids[:-1:step], grids[-1]], frames, strict=True):
        if frame.size != frames[-1].size:
            size, right = (f"{f.width}×{f.height}" for f in (frame, frames[-1]))
            raise UserError(f"{grid} has {size} pixels, but the last grid has {right}")
    durations = [_FRAME_MILLISECONDS] * (len(frames) - 1) + [10 * _FRAME_MILLISECONDS]
    with complete_or_absent(path) as temporary:
        frames[0].save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=frames[1:],
            duration=durations,
            loop=0,
        )


def _open_grid(path: Path) -> Image.Image:
    try:
        frame = Image.open(io.BytesIO(read_regular_file(path)), formats=["PNG"])
        frame.load()
    except Exception:  # Pillow raises many types for a damaged file
        raise UserError(f"{path} is not a PNG file that can be read") from None
    return Image.fromarray(to_8_bits(np.asarray(frame))) if frame.mode == "I;16" else frame

"""Grids of images as PNG files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedgan_mpi.cli.commands import Sample
from fedgan_mpi.files import complete_or_absent

if TYPE_CHECKING:  # it imports torch, which mistakes are told before
    from fedgan_mpi.run.generator_file import TrainedGenerator

_FRAMES = 60
_FRAME_MILLISECONDS = 200
_GAP = 2  # pixels of the enlarged picture between images, and around them
_BACKGROUND = 40
_SMALLEST = 64  # images are enlarged by a whole factor to at least this many pixels


def grid(images: NDArray[np.uint8], *, columns: int | None = None) -> Image.Image:
    """uint8 (N, C, H, W) with C = 1 or 3, row by row; as square as it gets unless columns are
    given."""
    count, channels, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    factor = max(1, math.ceil(_SMALLEST / max(height, width)))
    large = images.repeat(factor, axis=2).repeat(factor, axis=3)
    down, right = height * factor + _GAP, width * factor + _GAP
    canvas = np.full((channels, rows * down + _GAP, columns * right + _GAP), _BACKGROUND, np.uint8)
    for n, image in enumerate(large):
        y, x = (n // columns) * down + _GAP, (n % columns) * right + _GAP
        canvas[:, y : y + height * factor, x : x + width * factor] = image
    return Image.fromarray(canvas[0] if channels == 1 else canvas.transpose(1, 2, 0))


def write_samples(generator: TrainedGenerator, command: Sample) -> None:
    """The picture that `sample` was asked for. Raises UserError where G knows no classes."""
    count, seed = command.count, command.seed
    if command.style == "interpolation":
        columns = 10
        images = generator.interpolations(-(-count // columns), columns, seed=seed)
    elif command.style == "classes":
        classes = generator.class_names
        columns = max(1, count // max(len(classes), 1))
        rows = [generator(columns, seed=seed, label=label) for label in range(len(classes))]
        images = np.concatenate(rows)
    else:
        write_grid(command.out, generator(count, seed=seed, label=command.label))
        return
    write_grid(command.out, images, columns=columns)


def write_film(path: Path, grids: Sequence[Path]) -> None:
    """An animated GIF of grids, at most 60 of them; the last one stays."""
    step = -(-len(grids) // _FRAMES)
    chosen = [*grids[:-1:step], grids[-1]]
    frames = [Image.open(grid) for grid in chosen]
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


def write_grid(path: Path, images: NDArray[np.uint8], *, columns: int | None = None) -> None:
    """Write uint8 (N, C, H, W) images as one PNG, complete or not at all. columns: None for about
    a square."""
    with complete_or_absent(path) as temporary:
        grid(images, columns=columns).save(temporary, format="PNG")

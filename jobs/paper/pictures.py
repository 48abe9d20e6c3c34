"""Pictures of what the algorithms generate: the best and the last generator, from the same z."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fedgan_mpi import load_generator
from fedgan_mpi.data import to_8_bits
from fedgan_mpi.run.figures import new_figure, write_figure
from fedgan_mpi.run.generator_file import BEST, FINAL
from fedgan_mpi.run.image_grids import grid

COUNT = 25  # images of a generator


def draw_samples(runs: Mapping[str, Path], path: Path) -> None:
    """Draw 25 images of the best and of the last generator of each run, unselected.

    runs: name -> run directory. path: of the PNG file.
    """
    figure = new_figure(1.7 * len(runs), 3.7)
    panels = figure.subplots(2, len(runs), squeeze=False)
    for column, (name, run) in enumerate(runs.items()):
        for row, (file, when) in enumerate(((BEST, "best"), (FINAL, "last"))):
            axes = panels[row, column]
            images = load_generator(run / f"{file}.safetensors")(COUNT, seed=0)
            axes.imshow(grid(to_8_bits(images)), cmap="gray", vmin=0, vmax=255)
            axes.set(xticks=[], yticks=[])
            if row == 0:
                axes.set_title(name, fontsize=9)
            if column == 0:
                axes.set_ylabel(when, fontsize=9)
    write_figure(figure, path)

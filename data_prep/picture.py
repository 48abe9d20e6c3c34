"""Draws who holds what: the classes of every device, and some of its images."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedgan_mpi.data import Manifest, read_shard, shard_name
from fedgan_mpi.files import writing
from fedgan_mpi.run.image_grids import grid

_SHOWN = 16  # devices whose images are drawn
_IMAGES = 9  # of each of them, three by three
_COLUMNS = 4
_NAMED = 20  # classes up to which a legend can be read


def draw(directory: Path, manifest: Manifest, path: Path) -> None:
    """Write a PNG: stacked bars of labels across devices, and below a grid of images a device.
    Raises UserError where the file cannot be written."""
    shown = min(manifest.devices, _SHOWN)
    rows = -(-shown // _COLUMNS)
    figure = Figure(figsize=(11, 4 + 2.7 * rows), layout="constrained")
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(4, 2.7 * rows)).flat
    _draw_classes(above.subplots(), manifest)
    for place, axis in enumerate(below.subplots(rows, _COLUMNS, squeeze=False).flat):
        axis.axis("off")
        if place < shown:
            _draw_images(axis, directory, manifest, place + 1)
    if shown < manifest.devices:
        below.suptitle(f"images of the first {shown} of {manifest.devices} devices")
    with writing(path):
        figure.savefig(path, format="png", dpi=120)


def _draw_classes(axis: matplotlib.axes.Axes, manifest: Manifest) -> None:
    devices = np.arange(1, manifest.devices + 1)
    classes = len(manifest.class_names)
    counts = np.array(manifest.histograms) if classes else np.array(manifest.images)[:, None]
    few = classes <= 10
    colours = matplotlib.colormaps["tab10" if few else "tab20" if classes <= _NAMED else "viridis"]
    bottom = np.zeros(manifest.devices)
    for label in range(counts.shape[1]):
        colour = colours(label if classes <= _NAMED else label / classes)
        name = manifest.class_names[label] if classes else None
        axis.bar(devices, counts[:, label], bottom=bottom, color=colour, label=name, width=0.8)
        bottom += counts[:, label]
    name = manifest.partition["name"]
    axis.set(xlabel="device", ylabel="images", title=f"{manifest.dataset}, partition {name}")
    axis.set_xlim(0.4, manifest.devices + 0.6)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.spines[["top", "right"]].set_visible(False)
    if 0 < classes <= _NAMED:
        # In the order of the stack, and beside the bars rather than over them.
        handles, names = axis.get_legend_handles_labels()
        axis.legend(
            handles[::-1],
            names[::-1],
            loc="center left",
            bbox_to_anchor=(1.0, 0.5),
            frameon=False,
        )


def _draw_images(
    axis: matplotlib.axes.Axes, directory: Path, manifest: Manifest, device: int
) -> None:
    shard = read_shard(
        directory / shard_name(device), image_shape=manifest.image_shape, in_memory=False
    )
    chosen = np.linspace(0, len(shard) - 1, min(_IMAGES, len(shard))).astype(np.int64)
    axis.imshow(np.asarray(grid(shard.take(chosen), columns=3)), cmap="gray", vmin=0, vmax=255)
    axis.set_title(f"device {device}: {len(shard):,} images", fontsize=9)

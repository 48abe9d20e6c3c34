"""Plots a shard directory: the class histogram of each device, and some of its images."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.ticker import MaxNLocator

from fedgan_mpi.data import Images, Manifest, read_shard, shard_name, to_8_bits
from fedgan_mpi.files import explain_write_errors
from fedgan_mpi.run.figures import label_text, new_figure, write_figure

_MAX_DEVICES = 16  # devices with images in the plot
_COLUMNS = 4  # devices per row
_SIDE = 3  # a device has a 3×3 grid of images
_MAX_NAMED = 20  # classes in a readable legend
_SMALLEST = 64  # pixels; smaller images are enlarged by an integer factor
_GAP, _GAP_GRAY = 2, 40  # pixels and gray value between images


def plot_shards(directory: Path, manifest: Manifest, path: Path) -> None:
    """Write a PNG with stacked class bars per device above one image grid per device.

    Raises UserError if the file cannot be written.
    """
    shown = min(manifest.devices, _MAX_DEVICES)
    rows = -(-shown // _COLUMNS)
    figure = new_figure(11, 4 + 2.7 * rows)
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(4, 2.7 * rows)).flat
    _plot_classes(above.subplots(), manifest)
    axes = below.subplots(rows, _COLUMNS, squeeze=False).flat
    for device, axis in enumerate(axes, start=1):
        axis.axis("off")
        if device <= shown:
            _plot_images(axis, directory, manifest, device)
    if shown < manifest.devices:
        below.suptitle(f"images of the first {shown} of {manifest.devices} devices")
    with explain_write_errors(path):
        write_figure(figure, path, stream=True)


def _plot_classes(axis: matplotlib.axes.Axes, manifest: Manifest) -> None:
    devices = np.arange(1, manifest.devices + 1)
    classes = len(manifest.class_names)
    counts = np.array(manifest.histograms) if classes else np.array(manifest.images)[:, None]
    named = classes <= _MAX_NAMED
    colormap = "tab10" if classes <= 10 else "tab20" if named else "viridis"
    colors = matplotlib.colormaps[colormap]
    bottom = np.zeros(manifest.devices)
    for label in range(counts.shape[1]):
        color = colors(label if named else label / classes)
        name = label_text(manifest.class_names[label]) if classes else None
        axis.bar(devices, counts[:, label], bottom=bottom, color=color, label=name, width=0.8)
        bottom += counts[:, label]
    title = label_text(f"{manifest.dataset}, partition {manifest.partition['name']}")
    axis.set(xlabel="device", ylabel="images", title=title)
    axis.set_xlim(0.4, manifest.devices + 0.6)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.spines[["top", "right"]].set_visible(False)
    if classes and named:
        # The legend has the order of the stack, and does not cover the bars.
        handles, names = axis.get_legend_handles_labels()
        axis.legend(
            handles[::-1],
            names[::-1],
            loc="center left",
            bbox_to_anchor=(1.0, 0.5),
            frameon=False,
        )


def _plot_images(
    axis: matplotlib.axes.Axes, directory: Path, manifest: Manifest, device: int
) -> None:
    shard = read_shard(
        directory / shard_name(device),
        image_shape=manifest.image_shape,
        dtype=manifest.dtype,
        in_memory=False,
    )
    chosen = np.linspace(0, len(shard) - 1, min(_SIDE**2, len(shard))).astype(np.int64)
    axis.imshow(_tile(to_8_bits(shard.take(chosen))), cmap="gray", vmin=0, vmax=255)
    axis.set_title(f"device {device}: {len(shard):,} images", fontsize=9)


def _tile(images: Images) -> Images:
    """Arrange images (N, C, H, W) in rows of three; return (H', W') for gray or (H', W', 3).

    Other channels are gray panels side by side.
    """
    if images.shape[1] not in (1, 3):
        images = np.concatenate(list(images.transpose(1, 0, 2, 3)), axis=2)[:, None]
    count, channels, height, width = images.shape
    factor = max(1, -(-_SMALLEST // max(height, width)))
    height, width = height * factor + _GAP, width * factor + _GAP
    shape = (-(-count // _SIDE) * height + _GAP, _SIDE * width + _GAP, channels)
    canvas = np.full(shape, _GAP_GRAY, np.uint8)
    for n, image in enumerate(images.repeat(factor, axis=2).repeat(factor, axis=3)):
        y, x = n // _SIDE * height + _GAP, n % _SIDE * width + _GAP
        canvas[y : y + image.shape[1], x : x + image.shape[2]] = image.transpose(1, 2, 0)
    return canvas[..., 0] if channels == 1 else canvas

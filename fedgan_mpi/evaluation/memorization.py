"""The command `memorization`: measures whether a generator memorizes training images.

Each rank finds its nearest training image for every generated image, in the features of the scores.
Distances of held-out images to the training images give the scale. The ranks' distances are reduced
to their minimum. Which device holds the nearest image, and the image itself, are released only if
the user asks for it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedgan_mpi.comm.link import Link
from fedgan_mpi.data import Images, Shard
from fedgan_mpi.errors import UserError
from fedgan_mpi.evaluation.features import BLOCK, Extractor
from fedgan_mpi.evaluation.generation import generate
from fedgan_mpi.evaluation.open_run import OpenRun, open_run, read_generator
from fedgan_mpi.evaluation.pairwise import Array, nearest
from fedgan_mpi.files import explain_write_errors, write_complete
from fedgan_mpi.hardware.memory import memory_limit
from fedgan_mpi.random_streams import Purpose
from fedgan_mpi.run.generator_file import find_generator
from fedgan_mpi.run.image_grids import write_grid
from fedgan_mpi.run.output import print_line

_CLOSE = 0.05  # quantile of held-out images' distances; a fake below it counts as close
_HELDOUT_IMAGES = 1000

Indices = NDArray[np.int64]


def _check_count(count: int, nz: int, heldout: Shard) -> None:
    """Raise UserError if `count` generated images do not fit into memory."""
    image = math.prod(heldout.images.shape[1:]) * heldout.images.dtype.itemsize
    most = memory_limit() // 4 // (image + 4 * nz)
    if count > most:
        right = f"at most {most}: more images do not fit into the memory of this machine"
        raise UserError(f"--count is {count}, but must be {right}")


def measure_memorization(
    link: Link,
    run: Path,
    *,
    shards: Path | None = None,
    count: int,
    show_images: bool = False,
    show_devices: bool = False,
    networks: str | None = None,
    extractor: str | None = None,
) -> None:
    """Write memorization.json and memorization.png into the run directory. Collective.

    Print the share of generated images that are closer to a training image than 95 % of the
    held-out images are.

    shards: The directory of the shards. None: as in the run's config.toml.
    count: Number of generated images.
    show_images: Let the nearest training images leave their devices, for memorization.png.
    show_devices: Write which device holds each of them.
    networks: Import string of the run's networks, if they are neither built in nor installed.
    extractor: Name or import string of the feature extractor.

    Raises AgreedError if a file is missing, damaged or not writable.
    """
    opened = open_run(link, run, shards, {"extractor": extractor}, networks)
    name = link.from_server(lambda: find_generator(run)).name
    generator = read_generator(link, opened.pair, run / name)
    seed, features_of = opened.config.run.seed, opened.extractors[0]
    link.on_every_rank(lambda: _check_count(count, opened.config.model.nz, opened.heldout))
    fakes = generate(
        opened.pair,
        generator,
        seed=seed,
        count=count,
        purpose=Purpose.GRID,
        chunk=0,
        dtype=opened.dtype,
    ).images
    chosen = opened.heldout.even_indices(min(len(opened.heldout), _HELDOUT_IMAGES))
    heldout = opened.heldout.take(chosen)
    points = features_of.rows(np.concatenate([fakes, heldout]))

    local = _nearest_on_rank(features_of, points, opened.real.shards)
    distances = link.minima(local.distances)
    devices = None
    if show_images or show_devices:  # of devices with equal distances, the first
        is_nearest = local.distances == distances
        devices = link.minima(np.where(is_nearest, local.devices, np.inf)).astype(np.int64)
    originals = None
    if show_images and devices is not None:
        originals = _collect_images(link, opened, devices[:count], local)

    def write_report() -> None:
        limit = float(np.quantile(distances[count:], _CLOSE))
        share_close = float((distances[:count] < limit).mean())
        report: dict[str, Any] = {
            "generator": name,
            "features": features_of.metric("frechet"),
            "distance": distances[:count].tolist(),
            "distance_of_heldout_images": distances[count:].tolist(),
            "close_below": limit,
            "share_close": share_close,
        }
        if show_devices and devices is not None:
            report["device"] = devices[:count].tolist()
        with explain_write_errors(run):
            write_complete(run / "memorization.json", (json.dumps(report) + "\n").encode())
            _draw(run / "memorization.png", fakes, originals)
        print_line(
            f"{share_close:.0%} of {count} generated images are closer to a training image than "
            f"{1 - _CLOSE:.0%} of the held-out real images"
        )
        print_line(str(run / "memorization.png"))

    link.from_server(write_report)


@dataclass
class _Nearest:
    """The nearest training image of each point among those that a rank holds."""

    distances: Array
    devices: Indices
    indices: Indices
    """In the device's shard."""


def _nearest_on_rank(extractor: Extractor, points: Array, shards: Mapping[int, Shard]) -> _Nearest:
    """Search this rank's shards. Without any, all distances are infinite."""
    found = _Nearest(
        np.full(len(points), np.inf),
        np.zeros(len(points), np.int64),
        np.zeros(len(points), np.int64),
    )
    for device, shard in sorted(shards.items()):
        for start in range(0, len(shard), BLOCK):
            images = shard.take(np.arange(start, min(start + BLOCK, len(shard))))
            distances, indices = nearest(points, extractor.rows(images))
            closer = distances < found.distances
            found.distances[closer] = distances[closer]
            found.devices[closer] = device
            found.indices[closer] = indices[closer] + start
    return found


def _collect_images(link: Link, opened: OpenRun, devices: Indices, local: _Nearest) -> Images:
    """Return the nearest training image of each fake, on every rank. Collective.

    devices: the device that holds each image.
    """
    pixels = np.zeros((len(devices), *opened.pair.image_shape))
    for n, device in enumerate(devices):
        if device in opened.real.shards:
            pixels[n] = opened.real.shards[device].take(local.indices[n : n + 1])[0]
    return link.sum(pixels.ravel()).reshape(pixels.shape).astype(opened.dtype)


def _draw(path: Path, fakes: Images, originals: Images | None) -> None:
    """Draw the fakes. Place the nearest training image, if given, to the right of each."""
    images, columns = fakes, None
    if originals is not None:
        images = np.stack([fakes, originals], 1).reshape(-1, *fakes.shape[1:])
        columns = 2 * max(1, round(np.sqrt(len(fakes) / 2)))
    write_grid(path, images, columns=columns)

"""The command `memorization`: measures whether a generator memorizes training images.

Each device finds its nearest training image for every generated image, in the features of the
scores. Distances of held-out images to the training images give the scale. Only distances leave a
device, unless the user also releases images.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fedgan_mpi.comm.link import Link
from fedgan_mpi.data import Shard
from fedgan_mpi.evaluation.features import Extractor
from fedgan_mpi.evaluation.generation import generate
from fedgan_mpi.evaluation.open_run import OpenRun, open_run, read_generator
from fedgan_mpi.evaluation.pairwise import Array, nearest
from fedgan_mpi.evaluation.real_images import BLOCK
from fedgan_mpi.files import explain_write_errors, write_complete
from fedgan_mpi.random_streams import Purpose
from fedgan_mpi.run.generator_file import find_generator
from fedgan_mpi.run.image_grids import write_grid

_CLOSE = 0.05  # quantile of held-out images' distances; a fake below it counts as close
_HELDOUT_IMAGES = 1000

Indices = NDArray[np.int64]
Pixels = NDArray[np.uint8]


def measure_memorization(
    link: Link,
    run: Path,
    *,
    shards: Path | None = None,
    count: int,
    show_images: bool,
    networks: str | None = None,
    extractor: str | None = None,
) -> None:
    """Write memorization.json and memorization.png into the run directory. Collective.

    Print the share of generated images that are closer to a training image than 95 % of the
    held-out images are. shards: the directory of the shards; None: as in the run's config.toml.
    count: generated images. show_images: let the nearest training images leave their devices, for
    memorization.png. networks: import string of the run's networks, if they are neither built in
    nor installed. extractor: name or import string of the feature extractor. Raises AgreedError if
    a file is missing, damaged or not writable.
    """
    opened = open_run(link, run, shards, {"extractor": extractor}, networks)
    name = link.from_server(lambda: find_generator(run)).name
    generator = read_generator(link, opened.pair, run / name)
    seed, features_of = opened.config.run.seed, opened.extractors[0]
    fakes = generate(opened.pair, generator, seed=seed, count=count, purpose=Purpose.GRID, chunk=0)
    heldout = opened.heldout.take(np.arange(min(len(opened.heldout), _HELDOUT_IMAGES)))
    points = _features(features_of, np.concatenate([fakes, heldout]))

    per_device = np.zeros((len(opened.real.images), len(points)))
    indices: dict[int, Indices] = {}
    for device, shard in opened.real.shards.items():
        per_device[device - 1], indices[device] = _nearest_in_shard(features_of, points, shard)
    per_device = link.sum(per_device.ravel()).reshape(per_device.shape)
    devices, distances = per_device.argmin(0) + 1, per_device.min(0)
    originals = _collect_images(link, opened, devices[:count], indices) if show_images else None

    def write_report() -> None:
        limit = float(np.quantile(distances[count:], _CLOSE))
        share_close = float((distances[:count] < limit).mean())
        report = {
            "generator": name,
            "features": features_of.metric("frechet"),
            "distance": distances[:count].tolist(),
            "device": devices[:count].tolist(),
            "distance_of_heldout_images": distances[count:].tolist(),
            "close_below": limit,
            "share_close": share_close,
        }
        with explain_write_errors(run):
            write_complete(run / "memorization.json", (json.dumps(report) + "\n").encode())
            _draw(run / "memorization.png", fakes, originals)
        print(
            f"{share_close:.0%} of {count} generated images are closer to a training image than "
            f"{1 - _CLOSE:.0%} of the held-out real images"
        )
        print(run / "memorization.png", flush=True)

    link.from_server(write_report)


@torch.no_grad()
def _features(extractor: Extractor, images: Pixels) -> Array:
    blocks = [images[start : start + BLOCK] for start in range(0, len(images), BLOCK)]
    features = [extractor.features(torch.from_numpy(block)).double().numpy() for block in blocks]
    return np.concatenate(features)


def _nearest_in_shard(extractor: Extractor, points: Array, shard: Shard) -> tuple[Array, Indices]:
    """Return each point's distance to the nearest image of the shard, and that image's index."""
    distances = np.full(len(points), np.inf)
    indices = np.zeros(len(points), np.int64)
    for start in range(0, len(shard), BLOCK):
        images = shard.take(np.arange(start, min(start + BLOCK, len(shard))))
        block_distances, block_indices = nearest(points, _features(extractor, images))
        closer = block_distances < distances
        distances[closer] = block_distances[closer]
        indices[closer] = block_indices[closer] + start
    return distances, indices


def _collect_images(
    link: Link, opened: OpenRun, devices: Indices, indices: dict[int, Indices]
) -> Pixels:
    """Return the nearest training image of each fake, on every rank. Collective.

    devices: the device of each image. indices: device -> its nearest image for each fake.
    """
    pixels = np.zeros((len(devices), *opened.pair.image_shape))
    for n, device in enumerate(devices):
        if device in opened.real.shards:
            pixels[n] = opened.real.shards[device].take(indices[device][n : n + 1])[0]
    return link.sum(pixels.ravel()).reshape(pixels.shape).astype(np.uint8)


def _draw(path: Path, fakes: Pixels, originals: Pixels | None) -> None:
    """Draw the fakes. Place the nearest training image, if given, to the right of each."""
    images, columns = fakes, None
    if originals is not None:
        images = np.stack([fakes, originals], 1).reshape(-1, *fakes.shape[1:])
        columns = 2 * max(1, round(np.sqrt(len(fakes) / 2)))
    write_grid(path, images, columns=columns)

"""`neighbours RUN`: does the generator repeat training images?

Each generated image's nearest training image, in the scores' features, is looked for on the rank
that holds it; so is that of held-out images, which tell what is near. Only distances leave a
device, unless the user lets images.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fedgan_mpi.cli.commands import Memorization
from fedgan_mpi.comm.link import Link
from fedgan_mpi.data import Shard
from fedgan_mpi.evaluation.evaluate import OpenRun, open_run, read_generator
from fedgan_mpi.evaluation.features import Extractor
from fedgan_mpi.evaluation.pairs import Array, nearest
from fedgan_mpi.evaluation.scorer import BLOCK, generate
from fedgan_mpi.files import write_complete, writing
from fedgan_mpi.random_streams import Purpose
from fedgan_mpi.run.generator_file import find_generator
from fedgan_mpi.run.image_grids import write_grid

_CLOSE = 0.05  # quantile of the held-out images' distances, below which a fake is called close


def measure_memorization(link: Link, command: Memorization) -> None:
    """Collective. Write neighbours.json and neighbours.png into the run directory, and say how many
    generated images are nearer to a training image than real images are."""
    run = command.run
    opened = open_run(link, run, command.shards)
    name = link.from_server(lambda: find_generator(run)).name
    shown = read_generator(link, opened.pair, run / name)
    seed, extractor = opened.config.run.seed, opened.extractors[0]
    fakes = generate(
        opened.pair, shown, seed=seed, count=command.count, purpose=Purpose.GRID, chunk=0
    )
    heldout = opened.heldout.take(np.arange(min(len(opened.heldout), 1000)))
    points = _features(extractor, np.concatenate([fakes, heldout]))

    devices = len(opened.real.images)
    distances = np.zeros((devices, len(points)))
    found: dict[int, NDArray[np.int64]] = {}
    for device, shard in opened.real.shards.items():
        distances[device - 1], found[device] = _nearest_in(extractor, points, shard)
    distances = link.sum(distances.ravel()).reshape(distances.shape)
    holder, nearest_distance = distances.argmin(0) + 1, distances.min(0)

    originals = None
    if command.show_images:
        originals = _fetch(link, opened, holder[: command.count], found)

    def tell() -> None:
        limit = float(np.quantile(nearest_distance[command.count :], _CLOSE))
        close = nearest_distance[: command.count] < limit
        lines = {
            "generator": name,
            "features": extractor.metric("frechet"),
            "distance": nearest_distance[: command.count].tolist(),
            "device": holder[: command.count].tolist(),
            "distance_of_heldout_images": nearest_distance[command.count :].tolist(),
            "close_below": limit,
            "share_close": float(close.mean()),
        }
        with writing(run):
            write_complete(run / "neighbours.json", (json.dumps(lines) + "\n").encode())
            _draw(run / "neighbours.png", fakes, originals)
        print(
            f"{close.mean():.0%} of {command.count} generated images are nearer to a training "
            f"image than {1 - _CLOSE:.0%} of held-out real images are"
        )
        print(run / "neighbours.png", flush=True)

    link.from_server(tell)


@torch.no_grad()
def _features(extractor: Extractor, images: NDArray[np.uint8]) -> Array:
    blocks = [images[start : start + BLOCK] for start in range(0, len(images), BLOCK)]
    features = [extractor.features(torch.from_numpy(block)).double().numpy() for block in blocks]
    return np.concatenate(features)


def _nearest_in(
    extractor: Extractor, points: Array, shard: Shard
) -> tuple[Array, NDArray[np.int64]]:
    """Of each point, the distance to the shard's nearest image, and which that is."""
    best = np.full(len(points), np.inf)
    which = np.zeros(len(points), np.int64)
    for start in range(0, len(shard), BLOCK):
        block = shard.take(np.arange(start, min(start + BLOCK, len(shard))))
        distances, nearest_here = nearest(points, _features(extractor, block))
        closer = distances < best
        best[closer], which[closer] = distances[closer], nearest_here[closer] + start
    return best, which


def _fetch(
    link: Link, opened: OpenRun, holder: NDArray[np.int64], found: dict[int, NDArray[np.int64]]
) -> NDArray[np.uint8]:
    """Collective. The nearest images themselves, from the devices that hold them."""
    pixels = np.zeros((len(holder), *opened.pair.image_shape))
    for n, device in enumerate(holder):
        if device in opened.real.shards:
            pixels[n] = opened.real.shards[device].take(found[device][n : n + 1])[0]
    return link.sum(pixels.ravel()).reshape(pixels.shape).astype(np.uint8)


def _draw(path: Path, fakes: NDArray[np.uint8], originals: NDArray[np.uint8] | None) -> None:
    """Generated images and, right of each, what it is nearest to."""
    images, columns = fakes, None
    if originals is not None:
        images = np.stack([fakes, originals], 1).reshape(-1, *fakes.shape[1:])
        columns = 2 * max(1, round(np.sqrt(len(fakes) / 2)))
    write_grid(path, images, columns=columns)

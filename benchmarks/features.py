"""Measures what features of real pictures are worth: a linear probe, damage, and seconds.

    python -m data_prep imagefolder --source cifar10_jpeg.zip --size 32 --devices 10 \\
        --out shards/cifar10
    mpirun -n 2 python benchmarks/features.py --shards shards/cifar10

Ranks share the images. Prints JSON:

accuracy      of a logistic regression, fitted to the features of training images, on held-out ones
distances     Fréchet distances between training images and damaged held-out images
is_monotone   whether each distance grows with the damage
seconds       for the features of the training images
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import common
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from fedgan_mpi.comm.link import Link
from fedgan_mpi.config import Config
from fedgan_mpi.data import Manifest, Shard
from fedgan_mpi.data.shard import read_shard, shard_name
from fedgan_mpi.evaluation.features import Extractor, read_extractor
from fedgan_mpi.evaluation.frechet import FeatureSums, frechet_distance
from fedgan_mpi.hardware.placement import set_threads

Pixels = NDArray[np.uint8]
Features = NDArray[np.float64]
BLOCK = 50


def main() -> None:
    parser = common.make_parser(__doc__)
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--images", type=int, default=5000, help="training images")
    parser.add_argument("--heldout", type=int, default=1000, help="held-out images")
    parser.add_argument("--extractor", choices=("imagenet", "shards"), default="imagenet")
    parser.add_argument("--size", type=int, default=224, help="as evaluation.imagenet_size")
    parser.add_argument("--no-damage", action="store_true", help="measure no distances")
    args = parser.parse_args()
    link = Link()
    set_threads(Config(), cores=link.local_cores, ranks=link.local_size)
    manifest = Manifest.read(args.shards)
    extractor = make_extractor(args.extractor, args.size, args.shards / str(manifest.features))

    def compute(images: Pixels) -> Features:
        return shared_features(link, extractor, images)

    images, labels = take(
        [open_shard(args.shards, manifest, shard_name(k + 1)) for k in range(manifest.devices)],
        args.images,
    )
    link.barrier()
    began = time.perf_counter()
    features = compute(images)
    seconds = time.perf_counter() - began
    heldout, truth = take([open_shard(args.shards, manifest, "heldout.h5")], args.heldout)
    of_heldout = compute(heldout)
    result: dict[str, object] = {
        "benchmark": "features",
        "extractor": extractor.metric("frechet"),
        "images": len(images),
        "ranks": link.size,
        "seconds": seconds,
    }
    if not args.no_damage:
        reference = sums_of(features)
        distances = {
            kind: [
                frechet_distance(sums_of(compute(damage(heldout, truth, s))), reference)
                for s in strengths
            ]
            for kind, (damage, strengths) in DAMAGES.items()
        }
        clean = frechet_distance(sums_of(of_heldout), reference)
        result["distances"] = {kind: [clean, *values] for kind, values in distances.items()}
        result["is_monotone"] = all(
            [clean, *values] == sorted([clean, *values]) for values in distances.values()
        )
    if link.is_server:
        common.print_json(result | {"accuracy": probe(features, labels, of_heldout, truth)})


def make_extractor(name: str, size: int, path: Path) -> Extractor:
    if name == "shards":
        return read_extractor(path)
    from fedgan_mpi.evaluation.imagenet import read_imagenet

    return read_imagenet(size)


def open_shard(directory: Path, manifest: Manifest, name: str) -> Shard:
    return read_shard(directory / name, image_shape=manifest.image_shape)


def take(shards: list[Shard], count: int) -> tuple[Pixels, NDArray[np.int64]]:
    """Return images and labels, an equal number from each shard, spread over it."""
    images, labels = [], []
    for shard in shards:
        assert shard.labels is not None
        indices = np.linspace(0, len(shard) - 1, count // len(shards)).astype(np.int64)
        images.append(shard.take(indices).astype(np.uint8))
        labels.append(np.asarray(shard.labels)[indices])
    return np.concatenate(images), np.concatenate(labels)


def shared_features(link: Link, extractor: Extractor, images: Pixels) -> Features:
    """Return the features of all images; each rank computes a part."""
    features = np.zeros((len(images), extractor.width))
    for start in range(link.rank * BLOCK, len(images), link.size * BLOCK):
        block = images[start : start + BLOCK]
        features[start : start + len(block)] = extractor.rows(block)
    return link.sum(features.ravel()).reshape(features.shape)


def sums_of(features: Features) -> FeatureSums:
    sums = FeatureSums.zero(features.shape[1])
    sums.accumulate(features)
    return sums


def probe(
    features: Features, labels: NDArray[np.int64], others: Features, truth: NDArray[np.int64]
) -> float:
    """Return the accuracy on `others` of a regression fitted to `features`."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    return float(model.fit(features, labels).score(others, truth))


def add_noise(images: Pixels, labels: NDArray[np.int64], strength: float) -> Pixels:
    noise = np.random.default_rng(0).normal(size=images.shape)
    return np.clip(images + 255 * strength * noise, 0, 255).astype(np.uint8)


def blur(images: Pixels, labels: NDArray[np.int64], sigma: float) -> Pixels:
    return gaussian_filter(images, (0, 0, sigma, sigma))


def drop_classes(images: Pixels, labels: NDArray[np.int64], kept: float) -> Pixels:
    """Keep the first classes, and repeat their images until there are as many as before."""
    few = images[labels < kept]
    return np.resize(few, images.shape)


Damage = Callable[[Pixels, NDArray[np.int64], float], Pixels]
DAMAGES: dict[str, tuple[Damage, tuple[float, ...]]] = {
    "noise": (add_noise, (0.05, 0.1, 0.2)),
    "blur": (blur, (0.5, 1.0, 1.5)),
    "classes kept": (drop_classes, (7, 4, 1)),
}
"""Kind -> function and its strengths, in increasing order of damage."""


if __name__ == "__main__":
    main()

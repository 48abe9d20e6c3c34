"""Metrics against other packages on the same features, and their order on damaged images."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from oracle_scores import sums_of

from fedgan_mpi.evaluation import pairwise
from fedgan_mpi.evaluation.frechet import frechet_distance

MNIST = Path(os.environ.get("FEDGAN_MPI_DATA", "/nonexistent")) / "MNIST" / "raw"
ONE_RANK = {"rank": 0, "size": 1, "allreduce": lambda numbers: numbers}


@pytest.fixture(scope="module")
def features() -> tuple[np.ndarray, np.ndarray]:
    """Correlated features of real and fake images."""
    stream = np.random.default_rng(0)
    mixing = stream.normal(size=(16, 16)) / 4
    return (
        stream.normal(size=(400, 16)) @ mixing,
        0.9 * stream.normal(size=(300, 16)) @ mixing + 0.1,
    )


def test_frechet_equals_torch_fidelity_and_scipys_matrix_root(features):
    metric_fid = pytest.importorskip("torch_fidelity.metric_fid")
    linalg = pytest.importorskip("scipy.linalg")
    real, fake = features
    value = frechet_distance(sums_of(fake), sums_of(real))
    statistics = [
        metric_fid.fid_features_to_statistics(torch.from_numpy(each)) for each in (fake, real)
    ]
    expected = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)
    assert value == pytest.approx(expected["frechet_inception_distance"], rel=1e-5)
    a, b = np.cov(fake, rowvar=False), np.cov(real, rowvar=False)
    difference = fake.mean(0) - real.mean(0)
    root = np.trace(linalg.sqrtm(a @ b).real)
    assert value == pytest.approx(difference @ difference + np.trace(a + b) - 2 * root, rel=1e-5)


def test_kid_equals_torch_fidelity(features):
    metric_kid = pytest.importorskip("torch_fidelity.metric_kid")
    real, fake = features
    expected = metric_kid.kid_features_to_metric(
        torch.from_numpy(fake),
        torch.from_numpy(real[:300]),
        kid_subsets=1,
        kid_subset_size=300,
        verbose=False,
    )["kernel_inception_distance_mean"]
    assert pairwise.squared_mmd(real[:300], fake) == pytest.approx(expected, rel=1e-9)
    values = pairwise.kernel_distance(real, fake, **ONE_RANK)
    # The mean over 100 subsets estimates the value of all images.
    of_all = pairwise.squared_mmd(real, fake)
    assert values["kid"] == pytest.approx(of_all, abs=4 * values["kid_std"] / 10)
    assert 0 < values["kid_std"] < of_all


def test_precision_recall_density_and_coverage_equal_the_prdc_package(features):
    package = pytest.importorskip("prdc")
    real, fake = features
    expected = package.compute_prdc(
        real_features=real, fake_features=fake, nearest_k=pairwise.K_NEAREST
    )
    values = pairwise.prdc(real, fake, **ONE_RANK)
    assert values == pytest.approx(expected, abs=1e-12)
    assert 0 < values["recall"] < 1 and 0 < values["coverage"] < 1


# ------------------------------------------------------------ on real digits


@pytest.fixture(scope="module")
def mnist():
    """A function from images to features, 9,000 images, and their labels."""
    if not MNIST.is_dir():
        pytest.skip(f"{MNIST} is missing")
    from fedgan_mpi.evaluation.features import train_classifier

    def read(name: str, offset: int) -> np.ndarray:
        return np.frombuffer(gzip.decompress((MNIST / name).read_bytes()), np.uint8)[offset:]

    images = read("train-images-idx3-ubyte.gz", 16).reshape(-1, 1, 28, 28)[:9000]
    labels = read("train-labels-idx1-ubyte.gz", 8)[:9000].astype(np.int64)
    network = train_classifier(images[:6000], labels[:6000], classes=10, seed=0)

    @torch.no_grad()
    def extract(images: np.ndarray) -> np.ndarray:
        return network.features(torch.from_numpy(images)).double().numpy()

    return extract, images, labels


def add_noise(images: np.ndarray, strength: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(size=images.shape) * 255 * strength
    return np.clip(images + noise, 0, 255).astype(np.uint8)


def blur(images: np.ndarray, sigma: float) -> np.ndarray:
    offsets = np.arange(-6, 7)
    weights = np.exp(-(offsets**2) / (2 * sigma**2))
    weights /= weights.sum()
    result = images.astype(float)
    for axis in (2, 3):
        result = sum(
            weight * np.roll(result, offset, axis)
            for weight, offset in zip(weights, offsets, strict=True)
        )
    return result.astype(np.uint8)


def test_the_distance_grows_with_noise_blur_and_missing_classes(mnist):
    extract, images, labels = mnist
    real, heldout, classes = sums_of(extract(images[:6000])), images[6000:], labels[6000:]
    for damaged in (
        [add_noise(heldout, strength) for strength in (0.05, 0.1, 0.2, 0.4)],
        [blur(heldout, sigma) for sigma in (0.5, 1.0, 1.5, 2.5)],
        [heldout[classes < count] for count in (9, 7, 5, 2)],
    ):
        distances = [
            frechet_distance(sums_of(extract(images)), real) for images in (heldout, *damaged)
        ]
        assert distances == sorted(distances) and distances[-1] > 10 * distances[0]


def test_precision_falls_with_quality_and_recall_with_variety(mnist):
    extract, images, labels = mnist
    real, heldout = extract(images[:1500]), images[6000:7500]

    def measure(images: np.ndarray) -> dict[str, float]:
        return pairwise.prdc(real, extract(images), **ONE_RANK)

    good, noisy = measure(heldout), measure(add_noise(heldout, 0.4))
    one_class = measure(images[6000:][labels[6000:] == 1])
    assert good["precision"] > 0.8 > noisy["precision"]
    assert one_class["precision"] > 0.8 and one_class["recall"] < 0.5 * good["recall"]
    assert one_class["coverage"] < 0.3 < good["coverage"]

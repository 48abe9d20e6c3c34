"""What the scores look at: 64 numbers an image, from a small classifier of the data set's own
classes or, where it has none, its principal components.

The extractor is trained once, at data preparation, and stored beside the shards; its file's hash is
part of the metric's name, since values of two extractors cannot be compared. A classifier's
features are the pre-activation units of the layer before the classes: a third of them would be dead
after a ReLU, and their covariance singular.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedgan_mpi.errors import UserError
from fedgan_mpi.evaluation.extractor_file import ABOUT, write_arrays
from fedgan_mpi.federation.flat_parameters import FlatParameters
from fedgan_mpi.files import sha256_of
from fedgan_mpi.nn.optimizers import Adam
from fedgan_mpi.random_streams import Purpose, torch_stream

FEATURES = 64
_BATCH = 64
_VIEWS = 30_000  # images a classifier is shown in training, in 3 to 8 epochs; some 4 s at 28 pixels


class Extractor(nn.Module, ABC):
    """uint8 images (B, C, H, W) to features, float32 (B, width)."""

    kind: str
    image_shape: tuple[int, int, int]
    width: int
    classes = 0
    """That it can tell apart; 0 where it knows of none."""
    sha256 = ""
    """Of the file it was read from."""

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """Features of a batch."""

    def metric(self, measure: str) -> str:
        """The full name of a measure through these features, such as `frechet` or `kid`."""
        name = "frechet_{}_distance" if measure == "frechet" else f"{measure}_{{}}"
        return f"{name.format(self.kind)}-{self.sha256[:8]}"


class Classifier(Extractor):
    """Images to features (B, 64) and, from those, to logits (B, classes)."""

    kind = "classifier"
    width = FEATURES

    def __init__(self, image_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.convolutions = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1),
            nn.MaxPool2d(2),  # before the ReLU, which comes to the same with a quarter of the work
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d((min(height // 2, 8), min(width // 2, 8))),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        side = (min(height // 2, 8) // 2) * (min(width // 2, 8) // 2)
        self.to_features = nn.Linear(32 * side, FEATURES)
        self.to_logits = nn.Linear(FEATURES, classes)
        self.image_shape, self.classes = image_shape, classes

    def features(self, images: Tensor) -> Tensor:
        # Channels last: twice as fast on a CPU.
        scaled = _scale(images).contiguous(memory_format=torch.channels_last)
        return self.to_features(self.convolutions(scaled))

    def logits(self, features: Tensor) -> Tensor:
        return self.to_logits(features.relu())


class PCA(Extractor):
    """Images to their first principal components (B, width), which data_prep finds."""

    kind = "pca"
    mean: Tensor
    directions: Tensor

    def __init__(self, image_shape: tuple[int, int, int], width: int) -> None:
        super().__init__()
        channels, height, across = image_shape
        pixels = channels * height * across
        self.image_shape, self.width = image_shape, width
        self.register_buffer("mean", torch.zeros(pixels))
        self.register_buffer("directions", torch.zeros(pixels, width))

    def features(self, images: Tensor) -> Tensor:
        return (_scale(images).flatten(1) - self.mean) @ self.directions


def _scale(images: Tensor) -> Tensor:
    """uint8 to float32 in [-1, 1]."""
    return images.to(torch.float32).div_(127.5).sub_(1)


def train_classifier(
    images: NDArray[np.uint8], labels: NDArray[np.int64], *, classes: int, seed: int
) -> Classifier:
    """A classifier of labelled images, uint8 (N, C, H, W) and int64 (N,); on one core, some seconds
    at 28 pixels."""
    channels, height, width = images.shape[1:]
    # Only the layers' own start needs torch's global generator; leave that as it was.
    stream = torch_stream(seed, Purpose.CLASSIFIER)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream.initial_seed())
        network = Classifier((channels, height, width), classes)
    network = network.to(memory_format=torch.channels_last)
    # Not torch.optim's, which imports torch's compiler.
    optimizer = Adam(FlatParameters(nn.Identity(), network).phi, lr=1e-3, betas=(0.9, 0.999))
    pixels, targets = torch.from_numpy(images), torch.from_numpy(labels)
    with _one_core():
        for _ in range(min(max(_VIEWS // len(pixels), 3), 8)):
            for batch in torch.randperm(len(pixels), generator=stream).split(_BATCH):
                optimizer.zero_gradient()
                logits = network.logits(network.features(pixels[batch]))
                cross_entropy(logits, targets[batch]).backward()
                optimizer.step()
    return network.to(memory_format=torch.contiguous_format).eval()


@contextmanager
def _one_core() -> Iterator[None]:
    """Sums come out the same on whatever machine, and other processes keep their cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def accuracy(
    network: Classifier, parts: Iterable[tuple[NDArray[np.uint8], NDArray[np.int64]]]
) -> float:
    """Share of images, given in parts with their labels, that the classifier names rightly."""
    right = total = 0
    for images, labels in parts:
        logits = network.logits(network.features(torch.from_numpy(images)))
        right += int((logits.argmax(1).numpy() == labels).sum())
        total += len(labels)
    return right / total


def write_extractor(path: Path, network: Extractor, accuracy: float | None = None) -> None:
    """Write it with what is needed to build it again; a classifier's held-out accuracy for the
    reader."""
    arrays = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    write_arrays(
        path,
        arrays,
        kind=network.kind,
        image_shape=network.image_shape,
        width=network.width,
        classes=network.classes,
        accuracy=accuracy,
    )


def read_extractor(path: Path) -> Extractor:
    """Raises UserError where the file is missing or is no extractor of ours."""
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})[ABOUT])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        channels, height, width = about["image_shape"]
        shape = (channels, height, width)
        network: Extractor
        if about["kind"] == Classifier.kind:
            network = Classifier(shape, about["classes"])
        elif about["kind"] == PCA.kind:
            network = PCA(shape, about["width"])
        else:
            raise KeyError("kind")
        network.load_state_dict(tensors)
        network.sha256 = sha256_of(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError):
        raise UserError(f"{path} is not a feature extractor that data_prep wrote") from None
    return network.eval()

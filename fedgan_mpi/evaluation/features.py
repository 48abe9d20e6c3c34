"""Feature extractors: a small classifier of the data set's own classes, or its PCA.

Data preparation trains the extractor once and stores it beside the shards. The hash of its file is
part of the metric's name, because values of two extractors are not comparable. Features of a
classifier are the pre-activation units of its penultimate layer: a third of them would be dead
after the ReLU, and their covariance singular.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedgan_mpi.data import Images, to_8_bits
from fedgan_mpi.errors import UserError
from fedgan_mpi.evaluation.extractor_file import METADATA_KEY, Metadata, read_metadata, write_arrays
from fedgan_mpi.federation.flat_parameters import FlatParameters
from fedgan_mpi.files import sha256_of
from fedgan_mpi.hardware.placement import single_thread
from fedgan_mpi.hardware.tf32 import without_tf32
from fedgan_mpi.nn.optimizers import Adam
from fedgan_mpi.nn.stored_shapes import check_stored_shapes
from fedgan_mpi.random_streams import Purpose, torch_stream

FEATURES = 64
BLOCK = 256  # images per call of an extractor
_BATCH_SIZE = 64
_TRAINING_IMAGES = 30_000  # over 3 to 8 epochs; about 4 s for images of 28 pixels


class Extractor(nn.Module, ABC):
    """Maps images (B, C, H, W) to features, float32 (B, width)."""

    kind: str
    image_shape: tuple[int, int, int]
    width: int
    classes = 0
    """The number of classes that it predicts; 0 if it is no classifier."""
    sha256 = ""
    """The hash of its file."""
    reads_uint16 = False
    """Whether it takes uint16 images; otherwise they are rounded to uint8."""
    device = torch.device("cpu")

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """Return the features of a batch on the extractor's device."""

    def place(self, device: str | torch.device) -> None:
        """Move the extractor to a device."""
        self.to(device)
        self.device = torch.device(device)

    @torch.no_grad()
    def compute(self, images: Images) -> Tensor:
        """Return the features of images (B, C, H, W), computed on the extractor's device in
        full float32."""
        if not self.reads_uint16:
            images = to_8_bits(images)
        with without_tf32():
            return self.features(torch.from_numpy(images).to(self.device))

    def rows(self, images: Images) -> NDArray[np.float64]:
        """Return the features of any number of images, (N, width), computed in blocks."""
        blocks = np.split(images, range(BLOCK, len(images), BLOCK))
        return np.concatenate([self.compute(block).double().cpu().numpy() for block in blocks])

    def metric(self, measure: str) -> str:
        """Return the full name of a metric of these features, such as `frechet` or `kid`."""
        name = "frechet_{}_distance" if measure == "frechet" else f"{measure}_{{}}"
        return f"{name.format(self.kind)}-{self.sha256[:8]}"


class Classifier(Extractor):
    """Maps images to features (B, 64), and features to logits (B, classes)."""

    kind = "classifier"
    width = FEATURES
    reads_uint16 = True

    def __init__(self, image_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.convolutions = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1),
            nn.MaxPool2d(2),  # commutes with the ReLU, which then costs a quarter
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d((min(height // 2, 8), min(width // 2, 8))),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        cells = (min(height // 2, 8) // 2) * (min(width // 2, 8) // 2)
        self.to_features = nn.Linear(32 * cells, FEATURES)
        self.to_logits = nn.Linear(FEATURES, classes)
        self.image_shape, self.classes = image_shape, classes

    def features(self, images: Tensor) -> Tensor:
        # Convolutions on a CPU run twice as fast in this memory format.
        scaled = _scale(images).contiguous(memory_format=torch.channels_last)
        return self.to_features(self.convolutions(scaled))

    def logits(self, features: Tensor) -> Tensor:
        return self.to_logits(features.relu())


class PCA(Extractor):
    """Projects images on their first principal directions, (B, width). data_prep computes them."""

    kind = "pca"
    reads_uint16 = True
    mean: Tensor
    directions: Tensor

    def __init__(self, image_shape: tuple[int, int, int], width: int) -> None:
        super().__init__()
        pixels = int(np.prod(image_shape))
        self.image_shape, self.width = image_shape, width
        self.register_buffer("mean", torch.zeros(pixels))
        self.register_buffer("directions", torch.zeros(pixels, width))

    def features(self, images: Tensor) -> Tensor:
        return (_scale(images).flatten(1) - self.mean) @ self.directions


def _scale(images: Tensor) -> Tensor:
    """Convert uint8 or uint16 to float32 in [-1, 1]."""
    return images.to(torch.float32).div_(torch.iinfo(images.dtype).max / 2).sub_(1)


def train_classifier(
    images: Images, labels: NDArray[np.int64], *, classes: int, seed: int
) -> Classifier:
    """Train a classifier on images, (N, C, H, W), and labels, int64 (N,).

    Use a single thread; this takes a few seconds for images of 28 pixels.
    """
    channels, height, width = images.shape[1:]
    # Layers draw their initial parameters from torch's global stream: preserve its state.
    stream = torch_stream(seed, Purpose.CLASSIFIER)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream.initial_seed())
        network = Classifier((channels, height, width), classes)
    network = network.to(memory_format=torch.channels_last)
    # Unlike torch.optim, this Adam does not import torch's compiler.
    optimizer = Adam(FlatParameters(nn.Identity(), network).phi, lr=1e-3, betas=(0.9, 0.999))
    pixels, targets = torch.from_numpy(images), torch.from_numpy(labels)
    with single_thread():
        for _ in range(min(max(_TRAINING_IMAGES // len(pixels), 3), 8)):
            for batch in torch.randperm(len(pixels), generator=stream).split(_BATCH_SIZE):
                optimizer.zero_gradient()
                logits = network.logits(network.features(pixels[batch]))
                cross_entropy(logits, targets[batch]).backward()
                optimizer.step()
    return network.to(memory_format=torch.contiguous_format).eval()


@torch.no_grad()
def accuracy(network: Classifier, parts: Iterable[tuple[Images, NDArray[np.int64]]]) -> float:
    """Return the classifier's accuracy over all parts of (images, labels)."""
    correct = total = 0
    for images, labels in parts:
        logits = network.logits(network.features(torch.from_numpy(images)))
        correct += int((logits.argmax(1).numpy() == labels).sum())
        total += len(labels)
    return correct / total


def write_extractor(path: Path, network: Extractor, accuracy: float | None = None) -> None:
    """Write an extractor, complete or not at all. accuracy: see `write_arrays`."""
    write_arrays(
        path,
        {name: tensor.numpy() for name, tensor in network.state_dict().items()},
        kind=network.kind,
        image_shape=network.image_shape,
        width=network.width,
        classes=network.classes,
        accuracy=accuracy,
    )


def _build(metadata: Metadata) -> Extractor:
    if metadata.kind == Classifier.kind:
        return Classifier(metadata.image_shape, metadata.classes)
    return PCA(metadata.image_shape, metadata.width)


def read_extractor(path: Path) -> Extractor:
    """Read an extractor. Raises UserError if the file is missing or not written by data_prep."""
    try:
        with safe_open(path, "pt") as file:
            metadata = read_metadata((file.metadata() or {})[METADATA_KEY])
        check_stored_shapes(path, lambda: _build(metadata))
        network = _build(metadata)
        network.load_state_dict(load_file(path))
        network.sha256 = sha256_of(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError):
        raise UserError(f"{path} is not a feature extractor written by data_prep") from None
    return network.eval()

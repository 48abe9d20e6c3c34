"""What the scores look at: 64 numbers an image, from a small classifier of the data set's own
classes.

The extractor is trained once, at data preparation, and stored beside the shards; its file's hash is
part of the metric's name, since values of two extractors cannot be compared. Its features are the
pre-activation units of the layer before the classes: a third of them would be dead after a ReLU,
and their covariance singular.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedgan_mpi.errors import UserError
from fedgan_mpi.streams import Purpose, torch_stream

FEATURES = 64
_EPOCHS = 8
_BATCH = 64


class Classifier(nn.Module):
    """uint8 images (B, C, H, W) to features (B, 64) and, from those, to logits (B, classes)."""

    def __init__(self, image_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.convolutions = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
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
        self.sha256 = ""
        """Of the file it was read from."""

    def features(self, images: Tensor) -> Tensor:
        return self.to_features(self.convolutions(images.to(torch.float32) / 127.5 - 1))

    def logits(self, features: Tensor) -> Tensor:
        return self.to_logits(features.relu())

    @property
    def metric(self) -> str:
        return f"frechet_classifier_distance-{self.sha256[:8]}"


def train_classifier(
    images: NDArray[np.uint8], labels: NDArray[np.int64], *, classes: int, seed: int
) -> Classifier:
    """A classifier of labelled images, uint8 (N, C, H, W) and int64 (N,); about 3 s of one core for
    1,400 digits."""
    channels, height, width = images.shape[1:]
    # Only the layers' own start needs torch's global generator; leave that as it was.
    stream = torch_stream(seed, Purpose.CLASSIFIER)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream.initial_seed())
        network = Classifier((channels, height, width), classes)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    pixels, targets = torch.from_numpy(images), torch.from_numpy(labels)
    for _ in range(_EPOCHS):
        for batch in torch.randperm(len(pixels), generator=stream).split(_BATCH):
            optimizer.zero_grad()
            logits = network.logits(network.features(pixels[batch]))
            cross_entropy(logits, targets[batch]).backward()
            optimizer.step()
    return network.eval()


@torch.no_grad()
def accuracy(network: Classifier, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> float:
    """Share of the images that the classifier names rightly."""
    logits = network.logits(network.features(torch.from_numpy(images)))
    return float((logits.argmax(1) == torch.from_numpy(labels)).float().mean())


def write_classifier(path: Path, network: Classifier, accuracy: float) -> None:
    """Write it with what is needed to build it again; held-out accuracy for the reader."""
    about = {"image_shape": json.dumps(network.image_shape), "classes": str(network.classes)}
    about |= {"kind": "classifier", "accuracy": f"{accuracy:.4f}"}
    path.write_bytes(save(network.state_dict(), about))


def read_classifier(path: Path) -> Classifier:
    """Raises UserError where the file is missing or is no classifier of ours."""
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if about.get("kind") != "classifier":
            raise KeyError("kind")
        channels, height, width = json.loads(about["image_shape"])
        network = Classifier((channels, height, width), int(about["classes"]))
        network.load_state_dict(tensors)
        network.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except (SafetensorError, KeyError, ValueError, RuntimeError):
        raise UserError(f"{path} is not a feature extractor that data_prep wrote") from None
    return network.eval()

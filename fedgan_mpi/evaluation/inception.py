"""The features of FID: 2,048 numbers per image from the Inception network of 2015.

Network and resizing are torch-fidelity's. The user supplies the weight file; nothing is downloaded.
"""

from __future__ import annotations

import pickle
from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor

from fedgan_mpi.errors import UserError
from fedgan_mpi.evaluation.features import Extractor
from fedgan_mpi.evaluation.pinned_file import INCEPTION_SHA256, read_inception_weights


class Inception(Extractor):
    """Maps uint8 images of 1 or 3 channels to float32 (B, 2048). Gray images are repeated."""

    kind = "inception"
    width = 2048

    def __init__(self, network: torch.nn.Module, sha256: str) -> None:
        super().__init__()
        self.network, self.sha256 = network, sha256

    def features(self, images: Tensor) -> Tensor:
        features: Tensor = self.network(images.expand(-1, 3, -1, -1))[0]
        return features

    def metric(self, measure: str) -> str:
        # The name needs no hash, because only one weight file is accepted.
        return "fid_inception" if measure == "frechet" else f"{measure}_inception"


def read_inception(path: Path, *, sha256: str = INCEPTION_SHA256) -> Inception:
    """Read the network. Raises UserError, before opening the file, if its hash differs.

    sha256: only tests set it. Values of another file are not FID.
    """
    content = read_inception_weights(path, sha256=sha256)
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError:
        raise UserError(
            "evaluation.inception_weights needs torch-fidelity: `pip install torch-fidelity`"
        ) from None
    # torch-fidelity unpickles any object, so pass it only tensors, filtered by weights_only.
    tensors_only = BytesIO()
    try:
        torch.save(torch.load(BytesIO(content), weights_only=True), tensors_only)
        tensors_only.seek(0)
        network = FeatureExtractorInceptionV3(
            "inception", ["2048"], feature_extractor_weights_path=tensors_only
        )
    except (pickle.UnpicklingError, RuntimeError, EOFError, TypeError, AttributeError):
        raise UserError(f"{path} does not hold the parameters of FID's Inception network") from None
    return Inception(network, sha256).eval()

"""The Inception weight file: features, hash check, and safety against hostile files."""

from __future__ import annotations

import hashlib
import os
import pickle
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch

from fedgan_mpi.errors import UserError
from fedgan_mpi.evaluation.inception import read_inception


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> tuple[Path, torch.nn.Module]:
    """A weight file with random parameters, and torch-fidelity's network that uses it."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    network_type = module.FeatureExtractorInceptionV3
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    empty = BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(0)
        patch.setattr(network_type, "load_state_dict", lambda self, state: None)
        network = network_type("random", ["2048"], feature_extractor_weights_path=empty)
    torch.save(network.state_dict(), path)
    return path, network_type("reference", ["2048"], feature_extractor_weights_path=str(path))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_features_equal_torch_fidelity(weights):
    path, reference = weights
    network = read_inception(path, sha256=sha256(path))
    stream = np.random.default_rng(0)
    for channels in (1, 3):
        pixels = stream.integers(0, 256, (2, channels, 32, 32), dtype=np.uint8)
        images = torch.from_numpy(pixels)
        with torch.no_grad():
            expected = reference(images.repeat(1, 3 // channels, 1, 1))[0]
            assert torch.equal(network.features(images), expected)
    assert network.metric("frechet") == "fid_inception"
    assert network.metric("kid") == "kid_inception"


def test_a_file_with_another_hash_is_refused(weights, tmp_path):
    with pytest.raises(UserError, match=r"has SHA-256 .* but must be weights-inception"):
        read_inception(weights[0])
    with pytest.raises(UserError, match="cannot be read"):
        read_inception(tmp_path / "none.pth")


class Hostile:
    """An object whose unpickling creates a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __reduce__(self):
        return os.mkdir, (str(self.directory),)


def test_a_hostile_file_runs_no_code(tmp_path):
    path, directory = tmp_path / "weights.pth", tmp_path / "created"
    path.write_bytes(pickle.dumps(Hostile(directory)))
    with pytest.raises(UserError, match="does not hold the parameters"):
        read_inception(path, sha256=sha256(path))
    torch.save({"x": Hostile(directory)}, path)
    with pytest.raises(UserError, match="does not hold the parameters"):
        read_inception(path, sha256=sha256(path))
    assert not directory.exists()

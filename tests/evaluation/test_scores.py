"""Measures against other programs' on the same features, and what they must say of damaged images;
the Inception file."""

from __future__ import annotations

import gzip
import hashlib
import os
import pickle
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from test_evaluation import moments

from fedgan_mpi.errors import UserError
from fedgan_mpi.evaluation import pairs
from fedgan_mpi.evaluation.frechet import frechet_distance
from fedgan_mpi.evaluation.inception import read_inception

MNIST = Path(__file__).parents[3] / "shared" / "data" / "MNIST" / "raw"


@pytest.fixture(scope="module")
def features() -> tuple[np.ndarray, np.ndarray]:
    stream = np.random.default_rng(0)
    mix = stream.normal(size=(16, 16)) / 4
    return stream.normal(size=(400, 16)) @ mix, 0.9 * stream.normal(size=(300, 16)) @ mix + 0.1


def alone(numbers: np.ndarray) -> np.ndarray:
    return numbers


def test_frechet_equals_torch_fidelity_and_scipys_root(features):
    metric_fid = pytest.importorskip("torch_fidelity.metric_fid")
    linalg = pytest.importorskip("scipy.linalg")
    real, fake = features
    ours = frechet_distance(moments(fake), moments(real))
    numbers = [
        metric_fid.fid_features_to_statistics(torch.from_numpy(each)) for each in (fake, real)
    ]
    theirs = metric_fid.fid_statistics_to_metric(*numbers, verbose=False)
    assert ours == pytest.approx(theirs["frechet_inception_distance"], rel=1e-5)
    a, b = np.cov(fake, rowvar=False), np.cov(real, rowvar=False)
    difference = fake.mean(0) - real.mean(0)
    root = np.trace(linalg.sqrtm(a @ b).real)
    assert ours == pytest.approx(difference @ difference + np.trace(a + b) - 2 * root, rel=1e-5)


def test_a_singular_covariance_gives_a_number():
    """Fewer images than features, and features that never change."""
    stream = np.random.default_rng(0)
    few, dead = stream.normal(size=(10, 64)), stream.normal(size=(200, 64))
    dead[:, :40] = 0
    value = frechet_distance(moments(few), moments(dead))
    assert np.isfinite(value) and value > 0
    assert frechet_distance(moments(dead), moments(dead)) == pytest.approx(0, abs=1e-6)


def test_kid_equals_torch_fidelity(features):
    metric_kid = pytest.importorskip("torch_fidelity.metric_kid")
    real, fake = features
    theirs = metric_kid.kid_features_to_metric(
        torch.from_numpy(fake),
        torch.from_numpy(real[:300]),
        kid_subsets=1,
        kid_subset_size=300,
        verbose=False,
    )["kernel_inception_distance_mean"]
    assert pairs.squared_discrepancy(real[:300], fake) == pytest.approx(theirs, rel=1e-9)
    ours = pairs.kernel_distance(real, fake, rank=0, size=1, sum=alone)
    # Subsets' mean is that of the whole, within the error of the mean of 100.
    whole = pairs.squared_discrepancy(real, fake)
    assert ours["kid"] == pytest.approx(whole, abs=4 * ours["kid_std"] / 10)
    assert 0 < ours["kid_std"] < whole


def test_precision_to_coverage_equal_the_prdc_package(features):
    prdc = pytest.importorskip("prdc")
    real, fake = features
    theirs = prdc.compute_prdc(real_features=real, fake_features=fake, nearest_k=pairs.NEAREST)
    ours = pairs.neighbour_measures(real, fake, rank=0, size=1, sum=alone)
    assert ours == pytest.approx(theirs, abs=1e-12)
    assert 0 < ours["recall"] < 1 and 0 < ours["coverage"] < 1


# On real digits


@pytest.fixture(scope="module")
def digits():
    if not MNIST.is_dir():
        pytest.skip("MNIST is not here")
    from fedgan_mpi.evaluation.features import train_classifier

    def read(name: str, offset: int) -> np.ndarray:
        return np.frombuffer(gzip.decompress((MNIST / name).read_bytes()), np.uint8)[offset:]

    pictures = read("train-images-idx3-ubyte.gz", 16).reshape(-1, 1, 28, 28)[:9000]
    labels = read("train-labels-idx1-ubyte.gz", 8)[:9000].astype(np.int64)
    network = train_classifier(pictures[:6000], labels[:6000], classes=10, seed=0)

    @torch.no_grad()
    def look(images: np.ndarray) -> np.ndarray:
        return network.features(torch.from_numpy(images)).double().numpy()

    return look, pictures, labels


def noisy(images: np.ndarray, strength: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(size=images.shape) * 255 * strength
    return np.clip(images + noise, 0, 255).astype(np.uint8)


def blurred(images: np.ndarray, sigma: float) -> np.ndarray:
    reach = np.arange(-6, 7)
    weights = np.exp(-(reach**2) / (2 * sigma**2))
    weights /= weights.sum()
    result = images.astype(float)
    for axis in (2, 3):
        result = sum(
            w * np.roll(result, step, axis) for w, step in zip(weights, reach, strict=True)
        )
    return result.astype(np.uint8)


def test_the_distance_grows_with_noise_blur_and_lost_classes(digits):
    look, pictures, labels = digits
    real, other, classes = moments(look(pictures[:6000])), pictures[6000:], labels[6000:]

    def distances(damaged: list[np.ndarray]) -> list[float]:
        return [frechet_distance(moments(look(images)), real) for images in damaged]

    for series in (
        distances([other, *(noisy(other, s) for s in (0.05, 0.1, 0.2, 0.4))]),
        distances([other, *(blurred(other, s) for s in (0.5, 1.0, 1.5, 2.5))]),
        distances([other, *(other[classes < most] for most in (9, 7, 5, 2))]),
    ):
        assert series == sorted(series) and series[-1] > 10 * series[0]


def test_neighbours_tell_lost_quality_from_lost_variety(digits):
    look, pictures, labels = digits
    real, other = look(pictures[:1500]), pictures[6000:7500]

    def measure(images: np.ndarray) -> dict[str, float]:
        return pairs.neighbour_measures(real, look(images), rank=0, size=1, sum=alone)

    fine, poor = measure(other), measure(noisy(other, 0.4))
    narrow = measure(pictures[6000:][labels[6000:] == 1])
    assert fine["precision"] > 0.8 > poor["precision"]
    assert narrow["precision"] > 0.8 and narrow["recall"] < 0.5 * fine["recall"]
    assert narrow["coverage"] < 0.3 < fine["coverage"]


# The Inception file


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> tuple[Path, torch.nn.Module]:
    """A file of the real one's layout with random parameters."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    network_type = module.FeatureExtractorInceptionV3
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    empty = BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(0)
        patch.setattr(network_type, "load_state_dict", lambda self, state: None)
        random = network_type("random", ["2048"], feature_extractor_weights_path=empty)
    torch.save(random.state_dict(), path)
    return path, network_type("theirs", ["2048"], feature_extractor_weights_path=str(path))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_inception_features_are_torch_fidelitys(weights):
    path, theirs = weights
    ours = read_inception(path, sha256=sha256(path))
    stream = np.random.default_rng(0)
    for channels in (1, 3):
        pixels = stream.integers(0, 256, (2, channels, 32, 32), dtype=np.uint8)
        images = torch.from_numpy(pixels)
        with torch.no_grad():
            expected = theirs(images.repeat(1, 3 // channels, 1, 1))[0]
            assert torch.equal(ours.features(images), expected)
    assert ours.metric("frechet") == "fid_inception" and ours.metric("kid") == "kid_inception"


def test_an_inception_file_with_another_hash_is_not_opened(weights, tmp_path):
    with pytest.raises(UserError, match=r"has SHA-256 .* but must be weights-inception"):
        read_inception(weights[0])
    with pytest.raises(UserError, match="cannot be read"):
        read_inception(tmp_path / "none.pth")


class Hostile:
    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self):
        return os.mkdir, (str(self.flag),)


def test_an_inception_file_cannot_run_code(tmp_path):
    path, flag = tmp_path / "weights.pth", tmp_path / "ran"
    path.write_bytes(pickle.dumps(Hostile(flag)))
    with pytest.raises(UserError, match="does not hold the parameters"):
        read_inception(path, sha256=sha256(path))
    torch.save({"x": Hostile(flag)}, path)
    with pytest.raises(UserError, match="does not hold the parameters"):
        read_inception(path, sha256=sha256(path))
    assert not flag.exists()

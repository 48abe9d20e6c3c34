"""The feature extractor for scores: principal components, or a sufficiently accurate classifier."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import originals
import pytest
import torch

from data_prep.__main__ import main
from data_prep.extractor import sample_images
from data_prep.pca import fit_pca
from fedgan_mpi.data import Manifest, read_shard
from fedgan_mpi.evaluation.features import (
    PCA,
    Classifier,
    read_extractor,
    train_classifier,
    write_extractor,
)
from fedgan_mpi.evaluation.frechet import FeatureSums, frechet_distance


def smooth(count: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    """Return uint8 images (N, C, 12, 12) with six strong directions and weak noise."""
    stream = np.random.default_rng(seed)
    basis = np.random.default_rng(99).normal(size=(6, channels * 144))
    flat = 128 + stream.normal(size=(count, 6)) @ basis * 12 + stream.normal(size=(count, 1))
    return np.clip(np.rint(flat), 0, 255).astype(np.uint8).reshape(count, channels, 12, 12)


def pca_network(images: np.ndarray) -> PCA:
    arrays = fit_pca(images)
    network = PCA(images.shape[1:], arrays["directions"].shape[1])
    network.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    return network


@pytest.mark.parametrize("count", [30, 500])
def test_pca_equals_numpys_svd(count):
    images = smooth(count)
    network = pca_network(images)
    assert network.width == min(64, count - 1)
    flat = images.reshape(count, -1) / 127.5 - 1
    centred = flat - flat.mean(0)
    _, _, rows = np.linalg.svd(centred, full_matrices=False)
    features = network.features(torch.from_numpy(images)).numpy()
    for n in range(6):
        expected = centred @ rows[n]
        sign = np.sign(features[:, n] @ expected)  # the sign of a component is arbitrary
        np.testing.assert_allclose(features[:, n] * sign, expected, atol=2e-3)
    directions = network.directions[:, :6].T @ network.directions[:, :6]
    np.testing.assert_allclose(directions, np.eye(6), atol=1e-4)


def test_pca_of_constant_images_is_finite():
    network = pca_network(np.full((10, 1, 4, 4), 7, np.uint8))
    assert np.isfinite(network.features(torch.zeros(3, 1, 4, 4, dtype=torch.uint8)).numpy()).all()


@pytest.mark.parametrize("kind", ["classifier", "pca"])
def test_extractor_file_round_trip_is_deterministic(tmp_path, kind):
    images, labels = smooth(200), np.arange(200) % 3
    hashes = set()
    for n in range(6):
        if kind == "pca":
            network = pca_network(images)
        else:
            network = train_classifier(images, labels, classes=3, seed=0)
        path = tmp_path / f"{n}.safetensors"
        write_extractor(path, network, 0.5 if kind == "classifier" else None)
        hashes.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(hashes) == 1
    restored = read_extractor(path)
    assert restored.metric("frechet") == f"frechet_{kind}_distance-{hashes.pop()[:8]}"
    assert isinstance(restored, {"pca": PCA, "classifier": Classifier}[kind])
    batch = torch.from_numpy(images[:5])
    assert torch.equal(restored.features(batch), network.features(batch))


def test_distance_grows_with_noise():
    images = smooth(600)
    network = pca_network(images[:300])

    def moments(images: np.ndarray) -> FeatureSums:
        sums = FeatureSums.zero(network.width)
        sums.accumulate(network.features(torch.from_numpy(images)).double().numpy())
        return sums

    real = moments(images[:300])
    stream = np.random.default_rng(5)
    values = []
    for strength in (0, 20, 60, 120):
        noise = stream.normal(size=(300, 1, 12, 12)) * strength
        damaged = np.clip(images[300:] + noise, 0, 255).astype(np.uint8)
        values.append(frechet_distance(moments(damaged), real))
    assert values == sorted(values) and values[-1] > 3 * values[0]


# The command line


def write_two_classes(directory: Path, separable: bool) -> None:
    """Write two folders of images: bright and dark if `separable`, else equal noise."""
    from PIL import Image

    for label, name in enumerate(("bright", "dark")):
        (directory / name).mkdir(parents=True)
        for n in range(60):
            image = originals.noise(16, 16, 3, seed=1000 * label + n) // 2
            image += np.uint8(100 * label * separable)
            Image.fromarray(image).save(directory / name / f"{n}.png")


def run(source: Path, out: Path, *more: str) -> int:
    size = ["--size", "16", "--devices", "3"]
    return main(["imagefolder", "--source", str(source), "--out", str(out), *size, *more])


def test_good_classifier_is_stored_with_accuracy_and_hash(tmp_path, capsys):
    write_two_classes(tmp_path / "in", separable=True)
    assert run(tmp_path / "in", tmp_path / "out") == 0
    manifest = Manifest.read(tmp_path / "out")
    assert manifest.features_accuracy is not None and manifest.features_accuracy > 0.9
    assert f"accuracy {manifest.features_accuracy:.1%} on held-out" in capsys.readouterr().out
    content = (tmp_path / "out" / manifest.features).read_bytes()
    assert manifest.features_sha256 == hashlib.sha256(content).hexdigest()


def test_guessing_classifier_is_refused_unless_forced(tmp_path, capsys):
    """The shards remain, and the repeated command needs only to write the features."""
    write_two_classes(tmp_path / "in", separable=False)
    out = tmp_path / "out"
    assert run(tmp_path / "in", out) == 1
    error = capsys.readouterr().err
    assert "but needs" in error and "--features pca" in error and "--force" in error
    assert not (out / "shards.json").exists()
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.h5")}
    assert run(tmp_path / "in", out, "--force") == 0
    assert before == {path.name: path.stat().st_mtime_ns for path in out.glob("*.h5")}
    assert Manifest.read(out).features_accuracy < 0.7
    assert run(tmp_path / "in", tmp_path / "pca", "--features", "pca") == 0
    assert isinstance(read_extractor(tmp_path / "pca" / "features.safetensors"), PCA)


def test_images_without_classes_get_pca(tmp_path, capsys):
    originals.celeba(tmp_path / "in")
    arguments = ["--source", str(tmp_path / "in"), "--size", "16", "--devices", "2"]
    assert main(["celeba", *arguments, "--out", str(tmp_path / "out")]) == 0
    network = read_extractor(tmp_path / "out" / "features.safetensors")
    assert isinstance(network, PCA) and network.width == 39
    assert Manifest.read(tmp_path / "out").features_accuracy is None
    refused = ["--features", "classifier", "--out", str(tmp_path / "no")]
    assert main(["celeba", *arguments, *refused]) == 1
    assert "the images have no classes" in capsys.readouterr().err


def test_partitions_share_one_extractor(tmp_path):
    hashes = set()
    for partition, devices in (("iid", "2"), ("dirichlet", "5"), ("classes", "8")):
        out = tmp_path / partition
        options = ["--partition", partition, "--devices", devices]
        assert main(["digits", *options, "--out", str(out)]) == 0
        hashes.add(json.loads((out / "shards.json").read_text())["features_sha256"])
    assert len(hashes) == 1


def test_training_sample_does_not_depend_on_partition(tmp_path):
    samples = []
    for partition in ("iid", "shards"):
        out = tmp_path / partition
        options = ["--partition", partition, "--features", "none", "--processes", "1"]
        main(["digits", *options, "--devices", "4", "--out", str(out)])
        shards = [
            read_shard(out / f"device_{k:04d}.h5", image_shape=(1, 16, 16), in_memory=False)
            for k in range(1, 5)
        ]
        samples.append(sample_images(shards, seed=0, most=100))
    (images, labels), (others, other_labels) = samples
    assert len(images) == 100 and len(set(labels.tolist())) == 10
    assert np.array_equal(images, others) and np.array_equal(labels, other_labels)

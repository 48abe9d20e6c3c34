"""The scores' extractor: a classifier that must be good enough, or principal components."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import originals
import pytest
import torch

from data_prep.__main__ import main
from data_prep.components import find_components
from data_prep.extractor import sample
from fedgan_mpi.data import Manifest, read_shard
from fedgan_mpi.evaluation.features import (
    PCA,
    Classifier,
    read_extractor,
    train_classifier,
    write_extractor,
)
from fedgan_mpi.evaluation.frechet import Moments, frechet_distance


def smooth(count: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    """Images of a few strong directions and weak noise, as real ones are; uint8 (N, C, 12, 12)."""
    stream = np.random.default_rng(seed)
    basis = np.random.default_rng(99).normal(size=(6, channels * 144))
    flat = 128 + stream.normal(size=(count, 6)) @ basis * 12 + stream.normal(size=(count, 1))
    return np.clip(np.rint(flat), 0, 255).astype(np.uint8).reshape(count, channels, 12, 12)


def components(images: np.ndarray) -> PCA:
    arrays = find_components(images)
    network = PCA(images.shape[1:], arrays["directions"].shape[1])
    network.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    return network


@pytest.mark.parametrize("count", [30, 500])
def test_components_equal_those_of_numpy(count):
    images = smooth(count)
    network = components(images)
    assert network.width == min(64, count - 1)
    flat = images.reshape(count, -1) / 127.5 - 1
    centred = flat - flat.mean(0)
    _, _, rows = np.linalg.svd(centred, full_matrices=False)
    features = network.features(torch.from_numpy(images)).numpy()
    for place in range(6):  # up to the sign, which is free
        expected = centred @ rows[place]
        found = features[:, place] * np.sign(features[:, place] @ expected)
        np.testing.assert_allclose(found, expected, atol=2e-3)
    directions = network.directions[:, :6].T @ network.directions[:, :6]
    np.testing.assert_allclose(directions, np.eye(6), atol=1e-4)


def test_components_of_constant_images_are_finite():
    network = components(np.full((10, 1, 4, 4), 7, np.uint8))
    assert np.isfinite(network.features(torch.zeros(3, 1, 4, 4, dtype=torch.uint8)).numpy()).all()


@pytest.mark.parametrize("kind", ["classifier", "pca"])
def test_an_extractor_survives_its_file_and_the_file_is_always_the_same(tmp_path, kind):
    images, labels = smooth(200), np.arange(200) % 3
    hashes = set()
    for n in range(6):
        if kind == "pca":
            network = components(images)
        else:
            network = train_classifier(images, labels, classes=3, seed=0)
        path = tmp_path / f"{n}.safetensors"
        write_extractor(path, network, 0.5 if kind == "classifier" else None)
        hashes.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(hashes) == 1
    again = read_extractor(path)
    assert again.metric("frechet") == f"frechet_{kind}_distance-{hashes.pop()[:8]}"
    assert isinstance(again, {"pca": PCA, "classifier": Classifier}[kind])
    batch = torch.from_numpy(images[:5])
    assert torch.equal(again.features(batch), network.features(batch))


def test_the_distance_grows_with_the_damage():
    images = smooth(600)
    network = components(images[:300])

    def moments(images: np.ndarray) -> Moments:
        sums = Moments.zero(network.width)
        sums.add(network.features(torch.from_numpy(images)).double().numpy())
        return sums

    real = moments(images[:300])
    stream = np.random.default_rng(5)
    values = []
    for strength in (0, 20, 60, 120):
        noise = stream.normal(size=(300, 1, 12, 12)) * strength
        damaged = np.clip(images[300:] + noise, 0, 255).astype(np.uint8)
        values.append(frechet_distance(moments(damaged), real))
    assert values == sorted(values) and values[-1] > 3 * values[0]


# At data preparation


def classes_of_pictures(directory: Path, tell_apart: bool) -> None:
    """Two folders of pictures: bright and dark, or all of the same noise."""
    from PIL import Image

    for label, name in enumerate(("bright", "dark")):
        (directory / name).mkdir(parents=True)
        for n in range(60):
            image = originals.noise(16, 16, 3, seed=1000 * label + n) // 2
            image += np.uint8(100 * label * tell_apart)
            Image.fromarray(image).save(directory / name / f"{n}.png")


def run(source: Path, out: Path, *more: str) -> int:
    size = ["--size", "16", "--devices", "3"]
    return main(["imagefolder", "--source", str(source), "--out", str(out), *size, *more])


def test_a_good_classifier_is_stored_with_its_accuracy_and_hash(tmp_path, capsys):
    classes_of_pictures(tmp_path / "in", tell_apart=True)
    assert run(tmp_path / "in", tmp_path / "out") == 0
    manifest = Manifest.read(tmp_path / "out")
    assert manifest.features_accuracy is not None and manifest.features_accuracy > 0.9
    assert f"{manifest.features_accuracy:.1%} of held-out images" in capsys.readouterr().out
    content = (tmp_path / "out" / manifest.features).read_bytes()
    assert manifest.features_sha256 == hashlib.sha256(content).hexdigest()


def test_a_classifier_that_guesses_is_refused_unless_forced(tmp_path, capsys):
    """The shards stay: the same command goes on with another choice of features."""
    classes_of_pictures(tmp_path / "in", tell_apart=False)
    out = tmp_path / "out"
    assert run(tmp_path / "in", out) == 1
    said = capsys.readouterr().err
    assert "but must reach" in said and "--features pca" in said and "--force" in said
    assert not (out / "shards.json").exists()
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.h5")}
    assert run(tmp_path / "in", out, "--force") == 0
    assert before == {path.name: path.stat().st_mtime_ns for path in out.glob("*.h5")}
    assert Manifest.read(out).features_accuracy < 0.7
    assert run(tmp_path / "in", tmp_path / "pca", "--features", "pca") == 0
    assert isinstance(read_extractor(tmp_path / "pca" / "features.safetensors"), PCA)


def test_principal_components_where_there_are_no_classes(tmp_path, capsys):
    originals.celeba(tmp_path / "in")
    arguments = ["--source", str(tmp_path / "in"), "--size", "16", "--devices", "2"]
    assert main(["celeba", *arguments, "--out", str(tmp_path / "out")]) == 0
    network = read_extractor(tmp_path / "out" / "features.safetensors")
    assert isinstance(network, PCA) and network.width == 39
    assert Manifest.read(tmp_path / "out").features_accuracy is None
    refused = ["--features", "classifier", "--out", str(tmp_path / "no")]
    assert main(["celeba", *arguments, *refused]) == 1
    assert "the images have no classes" in capsys.readouterr().err


def test_all_partitions_of_a_data_set_share_one_extractor(tmp_path):
    hashes = set()
    for partition, devices in (("iid", "2"), ("dirichlet", "5"), ("classes", "8")):
        out = tmp_path / partition
        cut = ["--partition", partition, "--devices", devices]
        assert main(["digits", *cut, "--out", str(out)]) == 0
        hashes.add(json.loads((out / "shards.json").read_text())["features_sha256"])
    assert len(hashes) == 1


def test_the_sample_of_a_large_set_is_small_and_the_same_for_all_partitions(tmp_path):
    drawn = []
    for partition in ("iid", "shards"):
        out = tmp_path / partition
        cut = ["--partition", partition, "--features", "none", "--processes", "1"]
        main(["digits", *cut, "--devices", "4", "--out", str(out)])
        shards = [
            read_shard(out / f"device_{k:04d}.h5", image_shape=(1, 16, 16), in_memory=False)
            for k in range(1, 5)
        ]
        drawn.append(sample(shards, seed=0, most=100))
    (images, labels), (others, other_labels) = drawn
    assert len(images) == 100 and len(set(labels.tolist())) == 10
    assert np.array_equal(images, others) and np.array_equal(labels, other_labels)

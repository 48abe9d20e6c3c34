"""Shards contain the images and labels of their source, bit for bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import originals
import pytest
from data_prep_helpers import DATA, ROOT, SERIAL, SOURCES, celeba_command

from data_prep.__main__ import main
from data_prep.decode import Decoder
from data_prep.partitions import Dirichlet
from data_prep.prepare import prepare
from fedgan_mpi.data import Manifest, read_shard


def check_equal_to_source(directory: Path, images: np.ndarray, labels: np.ndarray) -> Manifest:
    """Assert that the files hold each source image exactly once, bit for bit."""
    manifest = Manifest.read(directory)
    indices = []
    for name in [f"device_{k:04d}.h5" for k in range(1, manifest.devices + 1)] + ["heldout.h5"]:
        shard = read_shard(directory / name, image_shape=manifest.image_shape)
        assert np.array_equal(shard.images, images[shard.indices])
        assert np.array_equal(shard.labels, labels[shard.indices])
        indices += shard.indices.tolist()
    assert sorted(indices) == list(range(len(images)))
    return manifest


def test_shards_equal_source(tmp_path):
    images = originals.mnist(tmp_path / "raw")
    out = tmp_path / "out"
    arguments = ["--partition", "classes", "--devices", "5", "--out", str(out), *SERIAL]
    assert main(["mnist", "--source", str(tmp_path), *arguments]) == 0
    manifest = check_equal_to_source(out, images[:, None], np.arange(160) % 10)
    assert manifest.partition == {"name": "classes", "classes": 2}
    assert [np.count_nonzero(row) for row in manifest.histograms] == [2] * 5
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [*(f"device_{k:04d}.h5" for k in range(1, 6)), "heldout.h5", "shards.json"]
    )
    with h5py.File(out / "device_0001.h5") as file:
        assert file["images"].chunks is None
        assert file.attrs["device"] == 1 and file.attrs["devices"] == 5
        assert json.loads(file.attrs["image_shape"]) == [1, 28, 28]


@pytest.mark.skipif(not (DATA / "MNIST").exists(), reason="FEDGAN_MPI_DATA has no MNIST")
def test_shards_equal_original_mnist(tmp_path):
    source = SOURCES["mnist"](DATA)
    prepare(source, tmp_path / "out", devices=8, partition=Dirichlet(), features="none")
    check_equal_to_source(tmp_path / "out", source.images, source.labels)


@pytest.mark.skipif(
    not (DATA / "pneumoniamnist.npz").exists(), reason="FEDGAN_MPI_DATA has no PneumoniaMNIST"
)
def test_shards_equal_original_pneumoniamnist(tmp_path):
    with np.load(DATA / "pneumoniamnist.npz") as arrays:
        images = np.concatenate([arrays[f"{part}_images"] for part in ("train", "val", "test")])
        labels = np.concatenate([arrays[f"{part}_labels"] for part in ("train", "val", "test")])
    source = SOURCES["npz"](DATA / "pneumoniamnist.npz")
    prepare(source, tmp_path / "out", devices=8, partition=Dirichlet(), features="none")
    check_equal_to_source(tmp_path / "out", images[:, None], labels[:, 0])


@pytest.mark.parametrize("name", ["rsna", "imagefolder", "cifar10", "digits"])
def test_each_kind_of_source_gives_shards(tmp_path, name):
    source = tmp_path / "in"
    if name == "rsna":
        originals.rsna(source)
    elif name == "imagefolder":
        originals.image_folder(source)
    elif name == "cifar10":
        originals.unpack(source, originals.cifar10_files()[0])
    arguments = [name, "--source", str(source), "--size", "32", "--devices", "2", *SERIAL]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    manifest = Manifest.read(tmp_path / "out")
    assert manifest.image_shape == (1 if name in ("rsna", "digits") else 3, 32, 32)
    assert main([*arguments, "--channels", "1", "--out", str(tmp_path / "gray")]) == 0
    assert Manifest.read(tmp_path / "gray").image_shape == (1, 32, 32)


def test_unreadable_images_are_skipped_up_to_limit(tmp_path, capsys):
    faces, out = tmp_path / "celeba", tmp_path / "out"
    originals.celeba(faces)
    images = faces / "img_align_celeba"
    (images / "000003.jpg").write_bytes(b"not a jpeg")
    (images / "000006.jpg").write_bytes((images / "000006.jpg").read_bytes()[:900])
    assert main(celeba_command(faces, out, *SERIAL, "--skip-bad", "1")) == 1
    assert "--skip-bad N" in capsys.readouterr().err and not out.exists()
    assert main(celeba_command(faces, out, *SERIAL, "--skip-bad", "2")) == 0
    assert "skipped 2 unreadable images" in capsys.readouterr().out
    manifest = Manifest.read(out)
    assert [line.split(":")[0] for line in sorted(manifest.skipped)] == ["000003.jpg", "000006.jpg"]
    assert sum(manifest.images) == 39 and manifest.heldout_images == 19
    decoder = Decoder(source=SOURCES["celeba"](faces), size=16, image_shape=(3, 16, 16))
    for name in ("device_0001.h5", "device_0002.h5", "device_0003.h5", "heldout.h5"):
        shard = read_shard(out / name, image_shape=(3, 16, 16))
        assert len(shard) == len(shard.indices) and not {2, 5} & set(shard.indices.tolist())
        assert np.array_equal(shard.images, decoder(shard.indices).images)
        with h5py.File(out / name) as file:
            assert file["images"].chunks is None
    assert main(["inspect", str(out)]) == 0


@pytest.mark.parametrize("features", ["none", "pca"])
def test_torch_is_not_imported_without_classifier(tmp_path, features):
    """A run without a classifier starts fast and needs little memory."""
    code = (
        "import sys; from data_prep.__main__ import main; "
        f"main(['digits', '--out', {str(tmp_path / 'out')!r}, '--features', {features!r}]); "
        "assert not {'torch', 'torchvision', 'mpi4py', 'pydicom'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)

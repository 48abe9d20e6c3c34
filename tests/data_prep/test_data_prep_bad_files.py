"""Damaged or hostile archives, pickles and images are refused with the file and the reason."""

from __future__ import annotations

import pickle
import zipfile

import h5py
import numpy as np
import originals
import pytest
from data_prep_helpers import Attack, error_of, truncate

from data_prep.__main__ import main
from fedgan_mpi.data import read_shard
from fedgan_mpi.errors import UserError

# Archives and arrays


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100", "celeba", "rsna", "npz"])
def test_missing_files_are_named(tmp_path, capsys, name):
    source = tmp_path / "empty"
    source.mkdir()
    assert str(source) in error_of(capsys, name, source)
    assert str(tmp_path / "nowhere") in error_of(capsys, name, tmp_path / "nowhere")


def test_truncated_idx_file(tmp_path, capsys):
    source = tmp_path / "in"
    originals.mnist(source)
    truncate(source / "train-images-idx3-ubyte.gz")
    assert "train-images-idx3-ubyte.gz is not an idx file" in error_of(capsys, "mnist", source)
    originals.mnist(source, packed=False)
    truncate(source / "t10k-images-idx3-ubyte")
    error = error_of(capsys, "mnist", source)
    assert "t10k-images-idx3-ubyte" in error and "announces 31360" in error
    (source / "t10k-images-idx3-ubyte").write_bytes(b"\0\0\x0d\x03" + bytes(100))
    assert "not an idx file of uint8 in 3 dimensions" in error_of(capsys, "mnist", source)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_truncated_cifar_archive(tmp_path, capsys, share):
    source = tmp_path / "in"
    source.mkdir()
    originals.tar(source / "cifar-10-python.tar.gz", originals.cifar10_files()[0])
    truncate(source / "cifar-10-python.tar.gz", share)
    assert "cifar-10-python.tar.gz" in error_of(capsys, "cifar10", source)


def test_truncated_npz_and_zip(tmp_path, capsys):
    originals.medmnist(tmp_path / "x.npz")
    truncate(tmp_path / "x.npz")
    assert "x.npz" in error_of(capsys, "npz", tmp_path / "x.npz")
    originals.image_folder(tmp_path / "in")
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        archive.write(tmp_path / "in/cat/001.png", "cat/001.png")
    truncate(tmp_path / "in.zip")
    assert "in.zip is not a zip archive" in error_of(capsys, "imagefolder", tmp_path / "in.zip")


def test_damaged_zip_member_is_named(tmp_path, capsys):
    path = tmp_path / "in.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for n in range(20):
            archive.writestr(f"a/{n:02d}.jpg", originals.jpeg(originals.face(n)))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    error = error_of(capsys, "imagefolder", path, "--devices", "2")
    assert "a/" in error and "CRC" in error


@pytest.mark.parametrize(
    "name", ["../up.jpg", "/etc/up.jpg", "a/../../up.jpg", "..\\up.jpg", "C:/x"]
)
def test_zip_with_path_outside_its_folder(tmp_path, capsys, name):
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        archive.writestr("a/1.jpg", originals.jpeg(originals.face(1)))
        archive.writestr(name, originals.jpeg(originals.face(2)))
    error = error_of(capsys, "imagefolder", tmp_path / "in.zip")
    assert "whose path leaves the archive's folder" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.zip", "result"]


# Pickles


@pytest.mark.parametrize("file", ["data_batch_3", "batches.meta"])
def test_pickle_with_function_call(tmp_path, capsys, monkeypatch, file):
    monkeypatch.chdir(tmp_path)
    files = originals.cifar10_files()[0]
    attack = {"data": np.zeros((1, 3072), np.uint8), "labels": [Attack()], "label_names": Attack()}
    files[f"cifar-10-batches-py/{file}"] = pickle.dumps(attack, protocol=2)
    originals.unpack(tmp_path / "in", files)
    error = error_of(capsys, "cifar10", tmp_path / "in")
    assert file in error and "it refers to posix.system" in error
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("batch", "reason"),
    [
        ([1, 2], "it holds a list, not a dict"),
        ({"data": originals.noise(20, 3071), "labels": [0] * 20}, "data must be uint8 N×3072"),
        ({"data": originals.noise(20, 3072), "labels": [0] * 19}, "labels must be a list of 20"),
        ({"data": originals.noise(20, 3072), "labels": [10] * 20}, "labels must be from 0 to 9"),
    ],
)
def test_pickle_with_wrong_content(tmp_path, capsys, batch, reason):
    files = originals.cifar10_files()[0]
    files["cifar-10-batches-py/data_batch_2"] = originals.python2_pickle(batch)
    originals.unpack(tmp_path / "in", files)
    error = error_of(capsys, "cifar10", tmp_path / "in")
    assert reason in error and "data_batch_2" in error


# Images


def test_corrupt_image_is_named(tmp_path, capsys):
    source = tmp_path / "in"
    originals.image_folder(source)
    truncate(source / "dog" / "004.jpg")
    assert "dog/004.jpg: " in error_of(capsys, "imagefolder", source, "--devices", "2")


def test_corrupt_dicom_is_named(tmp_path, capsys):
    source = tmp_path / "in"
    names = originals.rsna(source)
    truncate(source / "stage_2_train_images" / f"{names[7]}.dcm")
    assert f"{names[7]}.dcm: " in error_of(capsys, "rsna", source)
    (source / "stage_2_train_images" / f"{names[7]}.dcm").write_bytes(b"no dicom")
    assert f"{names[7]}.dcm: " in error_of(capsys, "rsna", source)


def test_file_that_is_not_an_image(tmp_path, capsys):
    source = tmp_path / "in"
    originals.image_folder(source)
    (source / "dog" / "notes.txt").write_text("good dogs")
    error = error_of(capsys, "imagefolder", source, "--devices", "2")
    assert "dog/notes.txt: it is not an image" in error and "--skip-bad" in error
    arguments = ["--source", str(source), "--devices", "2", "--features", "none"]
    out = tmp_path / "out"
    assert main(["imagefolder", *arguments, "--skip-bad", "1", "--out", str(out)]) == 0
    assert "dog/notes.txt: it is not an image" in (out / "shards.json").read_text()


def test_image_outside_class_folders(tmp_path, capsys):
    source = tmp_path / "in"
    originals.image_folder(source)
    (source / "stray.jpg").write_bytes(originals.jpeg(originals.face(1)))
    assert "stray.jpg is outside the class folders" in error_of(capsys, "imagefolder", source)


# Shards


@pytest.mark.parametrize("name", ["labels", "indices"])
def test_shard_with_external_data_is_refused(tmp_path, name):
    main(["digits", "--out", str(tmp_path / "out"), "--features", "none"])
    path = tmp_path / "out" / "device_0001.h5"
    with h5py.File(path, "r+") as file:
        count = len(file[name])
        del file[name]
        file.create_dataset(name, (count,), np.int64, external=[("/etc/hostname", 0, 8 * count)])
    with pytest.raises(UserError, match=f"{name} refers to another file"):
        read_shard(path, image_shape=(1, 16, 16))

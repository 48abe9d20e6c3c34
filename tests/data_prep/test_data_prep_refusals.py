"""Bad input: one sentence that names the file and the reason, an exit code, and nothing left."""

from __future__ import annotations

import gzip
import os
import pickle
import zipfile
from pathlib import Path

import h5py
import numpy as np
import originals
import pytest

from data_prep.__main__ import main
from fedgan_mpi.data import read_shard
from fedgan_mpi.errors import UserError


class Attack:
    """What a hostile pickle holds: a call of any function at all."""

    def __reduce__(self):
        return os.system, ("touch pwned",)


def refuse(capsys, dataset: str, source: Path | None, *more: str) -> str:
    """The sentence with which it is refused; `out` must not be there, nor its parent littered."""
    out = Path(str(source)).parent / "result" / "out"
    out.parent.mkdir(exist_ok=True)
    files = [] if source is None else ["--source", str(source)]
    arguments = [dataset, *files, "--out", str(out), "--features", "none", "--processes", "1"]
    assert main([*arguments, *more]) != 0
    assert list(out.parent.iterdir()) == []
    sentence = capsys.readouterr().err
    assert sentence.count("\n") == 1 and "Traceback" not in sentence
    return sentence


def truncate(path: Path, share: float = 0.5) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


# Archives


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100", "celeba", "rsna", "npz"])
def test_missing_files_are_named(tmp_path, capsys, name):
    source = tmp_path / "empty"
    source.mkdir()
    assert str(source) in refuse(capsys, name, source)
    assert str(tmp_path / "nowhere") in refuse(capsys, name, tmp_path / "nowhere")


def test_truncated_idx(tmp_path, capsys):
    source = tmp_path / "in"
    originals.mnist(source)
    truncate(source / "train-images-idx3-ubyte.gz")
    assert "train-images-idx3-ubyte.gz is not an idx file" in refuse(capsys, "mnist", source)
    originals.mnist(source, packed=False)
    truncate(source / "t10k-images-idx3-ubyte")
    sentence = refuse(capsys, "mnist", source)
    assert "t10k-images-idx3-ubyte" in sentence and "promises 31360" in sentence
    (source / "t10k-images-idx3-ubyte").write_bytes(b"\0\0\x0d\x03" + bytes(100))
    assert "not an idx file of bytes in 3 dimensions" in refuse(capsys, "mnist", source)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_truncated_cifar_archive(tmp_path, capsys, share):
    source = tmp_path / "in"
    source.mkdir()
    originals.tar(source / "cifar-10-python.tar.gz", originals.cifar10_files()[0])
    truncate(source / "cifar-10-python.tar.gz", share)
    assert "cifar-10-python.tar.gz" in refuse(capsys, "cifar10", source)


def test_truncated_npz_and_zip(tmp_path, capsys):
    originals.medmnist(tmp_path / "x.npz")
    truncate(tmp_path / "x.npz")
    assert "x.npz" in refuse(capsys, "npz", tmp_path / "x.npz")
    originals.picture_folder(tmp_path / "in")
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        archive.write(tmp_path / "in/cat/001.png", "cat/001.png")
    truncate(tmp_path / "in.zip")
    assert "in.zip is not a zip archive" in refuse(capsys, "imagefolder", tmp_path / "in.zip")


def test_a_damaged_member_of_a_zip_is_named(tmp_path, capsys):
    path = tmp_path / "in.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for n in range(20):
            archive.writestr(f"a/{n:02d}.jpg", originals.jpeg(originals.face(n)))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    sentence = refuse(capsys, "imagefolder", path, "--devices", "2")
    assert "a/" in sentence and "CRC" in sentence


@pytest.mark.parametrize(
    "name", ["../up.jpg", "/etc/up.jpg", "a/../../up.jpg", "..\\up.jpg", "C:/x"]
)
def test_a_zip_that_escapes_its_folder(tmp_path, capsys, name):
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        archive.writestr("a/1.jpg", originals.jpeg(originals.face(1)))
        archive.writestr(name, originals.jpeg(originals.face(2)))
    assert "which escapes its folder" in refuse(capsys, "imagefolder", tmp_path / "in.zip")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.zip", "result"]


# Pickles


@pytest.mark.parametrize("place", ["data_batch_3", "batches.meta"])
def test_a_pickle_that_calls_something(tmp_path, capsys, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    files = originals.cifar10_files()[0]
    attack = {"data": np.zeros((1, 3072), np.uint8), "labels": [Attack()], "label_names": Attack()}
    files[f"cifar-10-batches-py/{place}"] = pickle.dumps(attack, protocol=2)
    originals.unpack(tmp_path / "in", files)
    sentence = refuse(capsys, "cifar10", tmp_path / "in")
    assert place in sentence and "it asks for posix.system" in sentence
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("batch", "sentence"),
    [
        ([1, 2], "it holds a list, not a dict"),
        ({"data": originals.noise(20, 3071), "labels": [0] * 20}, "data must be uint8 N×3072"),
        ({"data": originals.noise(20, 3072), "labels": [0] * 19}, "labels must be a list of 20"),
        ({"data": originals.noise(20, 3072), "labels": [10] * 20}, "labels must be from 0 to 9"),
    ],
)
def test_a_pickle_of_another_kind(tmp_path, capsys, batch, sentence):
    files = originals.cifar10_files()[0]
    files["cifar-10-batches-py/data_batch_2"] = originals.python2_pickle(batch)
    originals.unpack(tmp_path / "in", files)
    said = refuse(capsys, "cifar10", tmp_path / "in")
    assert sentence in said and "data_batch_2" in said


# Images


def test_a_corrupt_image_is_named(tmp_path, capsys):
    source = tmp_path / "in"
    originals.picture_folder(source)
    truncate(source / "dog" / "004.jpg")
    assert "dog/004.jpg: " in refuse(capsys, "imagefolder", source, "--devices", "2")


def test_a_corrupt_dicom_is_named(tmp_path, capsys):
    source = tmp_path / "in"
    names = originals.rsna(source)
    truncate(source / "stage_2_train_images" / f"{names[7]}.dcm")
    assert f"{names[7]}.dcm: " in refuse(capsys, "rsna", source)
    (source / "stage_2_train_images" / f"{names[7]}.dcm").write_bytes(b"no dicom")
    assert f"{names[7]}.dcm: " in refuse(capsys, "rsna", source)


def test_a_file_that_is_no_image(tmp_path, capsys):
    source = tmp_path / "in"
    originals.picture_folder(source)
    (source / "dog" / "notes.txt").write_text("good dogs")
    sentence = refuse(capsys, "imagefolder", source, "--devices", "2")
    assert "dog/notes.txt: it is not an image" in sentence and "--skip-bad" in sentence
    arguments = ["--source", str(source), "--devices", "2", "--features", "none"]
    out = tmp_path / "out"
    assert main(["imagefolder", *arguments, "--skip-bad", "1", "--out", str(out)]) == 0
    assert "dog/notes.txt: it is not an image" in (out / "shards.json").read_text()


def test_an_image_beside_the_folders(tmp_path, capsys):
    source = tmp_path / "in"
    originals.picture_folder(source)
    (source / "stray.jpg").write_bytes(originals.jpeg(originals.face(1)))
    assert "stray.jpg lies beside the folders" in refuse(capsys, "imagefolder", source)


# Labels that disagree with images


def test_mnist_labels_that_disagree(tmp_path, capsys):
    source = tmp_path / "in"
    originals.mnist(source)
    labels = source / "train-labels-idx1-ubyte.gz"
    labels.write_bytes(gzip.compress(originals.idx(np.zeros(119, np.uint8))))
    assert "has 119 labels, but" in refuse(capsys, "mnist", source)
    labels.write_bytes(gzip.compress(originals.idx(np.full(120, 10, np.uint8))))
    assert "has the label 10, but the classes" in refuse(capsys, "mnist", source)


def test_celeba_lists_that_disagree(tmp_path, capsys):
    source = tmp_path / "in"
    originals.celeba(source)
    image, split = source / "img_align_celeba" / "000007.jpg", source / "list_eval_partition.txt"
    attributes = source / "list_attr_celeba.txt"
    content = image.read_bytes()
    image.unlink()
    sentence = refuse(capsys, "celeba", source)
    assert "img_align_celeba lacks 1 image of" in sentence and "000007.jpg" in sentence
    image.with_name("999999.jpg").write_bytes(content)
    image.write_bytes(content)
    assert "list_attr_celeba.txt lacks 1 image of" in refuse(capsys, "celeba", source)
    image.with_name("999999.jpg").unlink()
    text = split.read_text()
    split.write_text(text.replace("000009.jpg 0\n", ""))
    assert "list_eval_partition.txt lacks 1 image" in refuse(capsys, "celeba", source)
    split.write_text(text.replace("000009.jpg 0\n", "000009.jpg 3\n"))
    assert "has the part '3'" in refuse(capsys, "celeba", source)
    split.write_text(text)
    truncate(attributes, 0.7)
    assert "is it truncated?" in refuse(capsys, "celeba", source)
    attributes.write_text("")
    assert "list_attr_celeba.txt is not CelebA's list" in refuse(capsys, "celeba", source)


def test_rsna_tables_that_disagree(tmp_path, capsys):
    source = tmp_path / "in"
    names = originals.rsna(source)
    labels, details = (
        source / f"stage_2_{name}.csv" for name in ("train_labels", "detailed_class_info")
    )
    boxes, classes = labels.read_text(), details.read_text()

    def said(path: Path, text: str) -> str:
        labels.write_text(boxes)
        details.write_text(classes)
        path.write_text(text)
        return refuse(capsys, "rsna", source)

    assert "both Target" in said(labels, boxes.replace(f"{names[2]},264.0", f"{names[2]},1") + (
        f"{names[2]},1,1,1,1,0\n"
    ))  # fmt: skip
    assert "has the Target '7'" in said(labels, boxes.replace(",,,,,0", ",,,,,7"))
    assert "must have the columns patientId and Target" in said(labels, "id,label\n1,1\n")
    assert "lacks the label of 1 patients" in said(labels, boxes.replace(f"{names[0]},,,,,0\n", ""))
    assert "lacks the image of 1 patients" in said(labels, boxes + "ffff,,,,,0\n")
    assert "the class None" in said(details, classes.replace(f"{names[0]},Normal\n", ""))
    assert "the class 'Odd'" in said(details, classes.replace(",Normal", ",Odd"))
    assert "has Target 0 in" in said(details, classes.replace(",Normal", ",Lung Opacity"))


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"images": originals.noise(9, 4, 4)}, "has no train_images; it has images"),
        ({"train_images": np.zeros((9, 4, 4))}, "train_images are float64, but must be uint8"),
        ({"train_images": originals.noise(9, 4, 4, 2)}, "must be N×H×W or N×H×W×3"),
        (
            {"train_images": originals.noise(9, 4, 4), "train_labels": np.zeros(8, int)},
            "one whole number for each of 9 images",
        ),
        (
            {"train_images": originals.noise(9, 4, 4), "train_labels": np.zeros((9, 14), int)},
            "one whole number for each of 9 images",
        ),
        (
            {"train_images": originals.noise(9, 4, 4), "train_labels": np.full(9, -1)},
            "classes are counted from 0",
        ),
        (
            {"train_images": originals.noise(9, 4, 4), "train_labels": np.array([Attack()] * 9)},
            "x.npz is not an npz file",
        ),
    ],
)
def test_npz_of_another_kind(tmp_path, capsys, monkeypatch, arrays, sentence):
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "x.npz", **arrays)
    assert sentence in refuse(capsys, "npz", tmp_path / "x.npz")
    assert not (tmp_path / "pwned").exists()


# Options


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--devices", "121"], "120 images cannot be cut into 121 shards"),
        (["--partition", "dirichlet", "--alpha", "0"], "--alpha is 0"),
        (["--partition", "dirichlet", "--devices", "13"], "13 devices of at least 10"),
        (["--partition", "classes", "--classes", "11"], "--classes is 11"),
        (["--partition", "attribute", "--attributes", "Male"], "no attribute 'Male'"),
        (["--partition", "by_file", "--map", "/nowhere.csv"], "/nowhere.csv cannot be read"),
    ],
)
def test_options_that_the_data_does_not_allow(tmp_path, capsys, options, sentence):
    originals.mnist(tmp_path / "in")
    assert sentence in refuse(capsys, "mnist", tmp_path / "in", *options)


@pytest.mark.parametrize(
    "arguments",
    [
        ["svhn", "--out", "x"],
        ["mnist", "--out", "x"],
        ["digits"],
        ["digits", "--out", "x", "--devices", "0"],
        ["digits", "--out", "x", "--size", "-3"],
        ["digits", "--out", "x", "--channels", "2"],
        ["digits", "--out", "x", "--heldout-share", "1"],
        ["digits", "--out", "x", "--skip-bad", "some"],
        ["digits", "--out", "x", "--partition", "random"],
    ],
)
def test_options_that_cannot_be(tmp_path, capsys, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert "error: " in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_what_is_there_is_never_overwritten(tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious.txt").write_text("x")
    assert main(["digits", "--out", str(out)]) == 1
    assert f"{out} exists already" in capsys.readouterr().err
    assert (out / "precious.txt").read_text() == "x"
    file = tmp_path / "file"
    file.write_text("x")
    assert main(["digits", "--out", str(file)]) == 1
    assert main(["digits", "--out", str(file / "below")]) == 1
    assert f"{file / 'below'} cannot be made" in capsys.readouterr().err


def test_a_user_error_in_the_middle_keeps_what_was_not_ours(tmp_path, capsys):
    source, out = tmp_path / "in", tmp_path / "out"
    originals.picture_folder(source)
    truncate(source / "dog" / "004.jpg")
    arguments = ["--source", str(source), "--devices", "2", "--processes", "1"]
    assert main(["imagefolder", *arguments, "--out", str(out)]) == 1 and not out.exists()


# Shards that reach elsewhere


@pytest.mark.parametrize("name", ["labels", "indices"])
def test_data_in_another_file_is_refused_on_reading(tmp_path, name):
    main(["digits", "--out", str(tmp_path / "out"), "--features", "none"])
    path = tmp_path / "out" / "device_0001.h5"
    with h5py.File(path, "r+") as file:
        count = len(file[name])
        del file[name]
        file.create_dataset(name, (count,), np.int64, external=[("/etc/hostname", 0, 8 * count)])
    with pytest.raises(UserError, match=f"{name} are kept in another file"):
        read_shard(path, image_shape=(1, 16, 16))

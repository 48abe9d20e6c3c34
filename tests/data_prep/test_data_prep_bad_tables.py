"""Labels and tables that contradict their images are refused with the file and the reason."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import originals
import pytest
from data_prep_helpers import Attack, error_of, truncate


def test_mnist_labels(tmp_path, capsys):
    source = tmp_path / "in"
    originals.mnist(source)
    labels = source / "train-labels-idx1-ubyte.gz"
    labels.write_bytes(gzip.compress(originals.idx(np.zeros(119, np.uint8))))
    assert "has 119 labels, but" in error_of(capsys, "mnist", source)
    labels.write_bytes(gzip.compress(originals.idx(np.full(120, 10, np.uint8))))
    assert "has the label 10, but labels of mnist must be" in error_of(capsys, "mnist", source)


def test_celeba_tables(tmp_path, capsys):
    source = tmp_path / "in"
    originals.celeba(source)
    image, split = source / "img_align_celeba" / "000007.jpg", source / "list_eval_partition.txt"
    attributes = source / "list_attr_celeba.txt"
    content = image.read_bytes()
    image.with_name("999999.jpg").write_bytes(content)
    assert "list_attr_celeba.txt lacks 1 image of" in error_of(capsys, "celeba", source)
    image.with_name("999999.jpg").unlink()
    text = split.read_text()
    split.write_text(text.replace("000009.jpg 0\n", ""))
    assert "list_eval_partition.txt lacks 1 image" in error_of(capsys, "celeba", source)
    split.write_text(text.replace("000009.jpg 0\n", "000009.jpg 3\n"))
    assert "has the part '3'" in error_of(capsys, "celeba", source)
    split.write_text(text)
    truncate(attributes, 0.7)
    assert "is it truncated?" in error_of(capsys, "celeba", source)
    attributes.write_text("")
    assert "list_attr_celeba.txt is not CelebA's list" in error_of(capsys, "celeba", source)


def test_rsna_tables(tmp_path, capsys):
    source = tmp_path / "in"
    names = originals.rsna(source)
    labels, details = (
        source / f"stage_2_{name}.csv" for name in ("train_labels", "detailed_class_info")
    )
    boxes, classes = labels.read_text(), details.read_text()

    def error_with(path: Path, text: str) -> str:
        labels.write_text(boxes)
        details.write_text(classes)
        path.write_text(text)
        return error_of(capsys, "rsna", source)

    contradiction = boxes.replace(f"{names[2]},264.0", f"{names[2]},1") + f"{names[2]},1,1,1,1,0\n"
    assert "both Target" in error_with(labels, contradiction)
    assert "has the Target '7'" in error_with(labels, boxes.replace(",,,,,0", ",,,,,7"))
    columns = "must have the columns patientId and Target"
    assert columns in error_with(labels, "id,label\n1,1\n")
    unlabelled = boxes.replace(f"{names[0]},,,,,0\n", "")
    assert "lacks the label of 1 patients" in error_with(labels, unlabelled)
    assert "lacks the image of 1 patients" in error_with(labels, boxes + "ffff,,,,,0\n")
    unclassified = classes.replace(f"{names[0]},Normal\n", "")
    assert "the class None" in error_with(details, unclassified)
    assert "the class 'Odd'" in error_with(details, classes.replace(",Normal", ",Odd"))
    assert "has Target 0 in" in error_with(details, classes.replace(",Normal", ",Lung Opacity"))


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"images": originals.noise(9, 4, 4)}, "has no train_images; it has images"),
        ({"train_images": np.zeros((9, 4, 4), "c8")}, "complex64, but must be integers or floats"),
        ({"train_images": originals.noise(9, 4)}, "must be N×H×W or N×H×W×C"),
        ({"train_images": originals.noise(9, 5, 8, 8)}, "looks like N×C×H×W"),
        (
            {"train_images": originals.noise(9, 4, 4), "train_labels": np.zeros(8, int)},
            "one integer for each of 9 images",
        ),
        (
            {"train_images": originals.noise(9, 4, 4), "train_labels": np.zeros((9, 14), int)},
            "one integer for each of 9 images",
        ),
        (
            {"train_images": originals.noise(9, 4, 4), "train_labels": np.full(9, -1)},
            "contain -1, but must be at least 0",
        ),
        (
            {"train_images": originals.noise(9, 4, 4), "train_labels": np.array([Attack()] * 9)},
            "x.npz is not an npz file",
        ),
    ],
)
def test_npz_arrays(tmp_path, capsys, monkeypatch, arrays, reason):
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "x.npz", **arrays)
    assert reason in error_of(capsys, "npz", tmp_path / "x.npz")
    assert not (tmp_path / "pwned").exists()

"""Data sets in other layouts than that of their authors: of Kaggle, subsets, other names."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import numpy as np
import originals
import pytest
from data_prep_helpers import SERIAL, SOURCES, error_of

from data_prep.__main__ import main
from fedgan_mpi.data import Manifest

# ------------------------------------------------------------ MNIST

NAMES = [
    f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
]


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    "layout", ["{dotted}", "{name}/{name}", "{dotted}/{dotted}", "{name}/{dotted}", "raw/{dotted}"]
)
def test_mnist_under_other_names(tmp_path, layout, suffix):
    """`train-images.idx3-ubyte` is the name in older mirrors. Kaggle adds folders of that name."""
    images = originals.mnist(tmp_path / "in", packed=suffix == ".gz")
    for name in NAMES:
        new = tmp_path / layout.format(name=name, dotted=name.replace("-idx", ".idx"))
        new.parent.mkdir(exist_ok=True)
        shutil.move(tmp_path / "in" / (name + suffix), f"{new}{suffix}")
    source = SOURCES["mnist"](tmp_path)
    assert np.array_equal(source.images[:, 0], images)
    assert source.labels[:12].tolist() == [*range(10), 0, 1]


# ------------------------------------------------------------ CelebA


def as_kaggle(source: Path) -> None:
    """Change the layout to that of Kaggle's jessicali9530/celeba-dataset."""
    images = source / "img_align_celeba"
    images.rename(source / "x")
    images.mkdir()
    (source / "x").rename(images / "img_align_celeba")
    attributes = source / "list_attr_celeba.txt"
    _, columns, *rows = attributes.read_text().splitlines()
    lines = ["image_id," + ",".join(columns.split()), *(",".join(row.split()) for row in rows)]
    (source / "list_attr_celeba.csv").write_text("\n".join(lines) + "\n")
    split = source / "list_eval_partition.txt"
    lines = ["image_id,partition", *(",".join(r.split()) for r in split.read_text().splitlines())]
    (source / "list_eval_partition.csv").write_text("\r\n".join(lines) + "\r\n")
    (source / "list_bbox_celeba.csv").write_text("image_id,x_1,y_1,width,height\n")
    attributes.unlink()
    split.unlink()


def same(source, expected) -> bool:
    first, last = np.asarray(source.image(0)), np.asarray(source.image(len(source) - 1))
    return (
        list(source.keys) == list(expected.keys)
        and source.heldout.tolist() == expected.heldout.tolist()
        and source.attribute("Male") == expected.attribute("Male")
        and source.attributes == expected.attributes
        and np.array_equal(first, np.asarray(expected.image(0)))
        and np.array_equal(last, np.asarray(expected.image(len(source) - 1)))
    )


@pytest.mark.parametrize("zipped", [False, True])
def test_celeba_of_kaggle(tmp_path, zipped):
    originals.celeba(tmp_path / "authors")
    shutil.copytree(tmp_path / "authors", tmp_path / "kaggle")
    as_kaggle(tmp_path / "kaggle")
    path = tmp_path / "kaggle"
    if zipped:
        path = Path(shutil.make_archive(str(tmp_path / "archive"), "zip", path))
    source = SOURCES["celeba"](path)
    assert same(source, SOURCES["celeba"](tmp_path / "authors")) and not source.warnings


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["", "\n", "\n\n\n", "\r\n\r\n"])
def test_celeba_with_blank_lines_at_the_end_of_its_tables(tmp_path, end, mark):
    originals.celeba(tmp_path / "in")
    shutil.copytree(tmp_path / "in", tmp_path / "b")
    for name in ("list_eval_partition.txt", "list_attr_celeba.txt"):
        path = tmp_path / "b" / name
        path.write_text(mark + path.read_text().rstrip("\n") + end, encoding="utf-8", newline="")
    source = SOURCES["celeba"](tmp_path / "b")
    assert same(source, SOURCES["celeba"](tmp_path / "in")) and not source.warnings


def keep_images(source: Path, numbers: range) -> None:
    for path in (source / "img_align_celeba").iterdir():
        if int(path.stem) not in numbers:
            path.unlink()


def test_a_subset_of_celeba_is_taken_with_a_warning(tmp_path, capsys):
    source = tmp_path / "in"
    originals.celeba(source)
    keep_images(source, range(11, 41))
    arguments = ["celeba", "--source", str(source), "--out", str(tmp_path / "out"), *SERIAL]
    assert main([*arguments, "--size", "16", "--devices", "2"]) == 0
    error = capsys.readouterr().err
    assert "img_align_celeba has 30 of the 60 images of" in error or "has 30 of the 60" in error
    assert "30 are missing, such as 000001.jpg" in error
    manifest = Manifest.read(tmp_path / "out")
    # Faces 11, 12, 17, 18, 23, 24, 29, 30, 35, 36 are for validation and test.
    assert (sum(manifest.images), manifest.heldout_images) == (20, 10)
    read = SOURCES["celeba"](source)
    assert read.keys[0] == "000011.jpg" and read.heldout.tolist()[:4] == [0, 1, 6, 7]
    assert read.attribute("Male")[:3] == ["Male", "not Male", "not Male"]  # 11, 12, 13


def test_a_subset_without_test_images_holds_out_a_random_share(tmp_path):
    originals.celeba(tmp_path)
    keep_images(tmp_path, range(1, 5))
    source = SOURCES["celeba"](tmp_path)
    assert len(source) == 4 and source.heldout is None


def test_a_subset_without_training_images_is_refused(tmp_path, capsys):
    originals.celeba(tmp_path / "in")
    keep_images(tmp_path / "in", range(5, 7))
    error = error_of(capsys, "celeba", tmp_path / "in")
    assert "has no training image among the 2 that exist" in error


def test_no_image_at_all_is_refused(tmp_path, capsys):
    originals.celeba(tmp_path / "in")
    keep_images(tmp_path / "in", range(0))
    assert "has neither img_align_celeba/ nor" in error_of(capsys, "celeba", tmp_path / "in")
    with zipfile.ZipFile(tmp_path / "in" / "img_align_celeba.zip", "w") as archive:
        archive.writestr("readme.md", "x")
    (tmp_path / "in" / "img_align_celeba").rmdir()
    error = error_of(capsys, "celeba", tmp_path / "in")
    assert "lacks 1 image of" in error and "readme.md" in error


@pytest.mark.parametrize(
    ("table", "old", "new", "reason"),
    [
        ("list_eval_partition.txt", "000009.jpg 0", "000009.jpg", "line 9: must have a file name"),
        ("list_eval_partition.txt", "000009.jpg 0", "000009.jpg 0 1", "line 9: must have a file"),
        ("list_eval_partition.txt", "000009.jpg 0", "000009.jpg 7", "has the part '7'"),
        ("list_attr_celeba.txt", "000009.jpg", "000008.jpg", "names an image twice"),
        ("list_attr_celeba.txt", "60\n", "sixty\n", "is not CelebA's list of attributes"),
    ],
)
def test_a_damaged_table_of_celeba_is_named(tmp_path, capsys, table, old, new, reason):
    originals.celeba(tmp_path / "in")
    path = tmp_path / "in" / table
    path.write_text(path.read_text().replace(old, new, 1))
    error = error_of(capsys, "celeba", tmp_path / "in")
    assert reason in error and table in error

"""Data sets in other layouts than the authors': Kaggle's copies, subsets, other names."""

from __future__ import annotations

import io
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import originals
import pytest
from data_prep_helpers import SERIAL, SOURCES, are_equal, error_of, truncate

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
    """Change to the layout of Kaggle's jessicali9530/celeba-dataset."""
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


# ------------------------------------------------------------ RSNA


def moved(source: Path, layout: str) -> Path:
    """Change the layout of RSNA's files, and return what --source names."""
    images = source / "stage_2_train_images"
    if layout == "upper case":
        for path in list(images.iterdir()):
            path.rename(path.with_suffix(".DCM"))
    elif layout == ".dicom":
        for path in list(images.iterdir()):
            path.rename(path.with_suffix(".dicom"))
    elif layout == "no extension":
        for path in list(images.iterdir()):
            path.rename(path.with_suffix(""))
    elif layout == "twice":
        images.rename(source / "x")
        images.mkdir()
        (source / "x").rename(images / "stage_2_train_images")
    elif layout == "folders":
        for n, path in enumerate(list(images.iterdir())):
            (images / str(n % 3)).mkdir(exist_ok=True)
            path.rename(images / str(n % 3) / path.name)
    elif layout == "below a folder":
        source.rename(source.with_name("x"))
        source.mkdir()
        source.with_name("x").rename(source / "rsna-pneumonia-detection-challenge")
    elif layout == "images in a zip":
        shutil.make_archive(str(images), "zip", images)
        shutil.rmtree(images)
    elif layout in ("zip", "tar"):
        return Path(shutil.make_archive(str(source.with_name("archive")), layout, source))
    return source


@pytest.mark.parametrize(
    "layout",
    ["upper case", ".dicom", "no extension", "twice", "folders", "below a folder",
     "images in a zip", "zip", "tar"],
)  # fmt: skip
def test_rsna_in_another_layout(tmp_path, layout):
    names = originals.rsna(tmp_path / "expected", patients=9)
    shutil.copytree(tmp_path / "expected", tmp_path / "in")
    expected = SOURCES["rsna"](tmp_path / "expected")
    source = SOURCES["rsna"](moved(tmp_path / "in", layout))
    assert list(source.keys) == names and source.labels.tolist() == expected.labels.tolist()
    assert source.attribute("view") == expected.attribute("view")
    for index in range(9):
        assert np.array_equal(np.asarray(source.image(index)), np.asarray(expected.image(index)))


# ------------------------------------------------------------ archives


def tar(folder: Path, path: Path, mode: str = "w", **options) -> Path:
    with tarfile.open(path, mode, **options) as archive:
        for file in sorted(folder.rglob("*")):
            archive.add(file, str(file.relative_to(folder)), recursive=False)
    return path


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_a_tar_archive_is_read_as_its_folder(tmp_path, form):
    folder = tmp_path / "in"
    originals.image_folder(folder, classes=("cat", "dog", "ünïcode", "x" * 90))
    (folder / "cat" / ".DS_Store").write_text("x")
    expected = SOURCES["imagefolder"](folder)
    source = SOURCES["imagefolder"](tar(folder, tmp_path / "in.tar", format=form))
    assert list(source.keys) == list(expected.keys) and not source.rejected
    assert source.class_names == expected.class_names
    for index in range(len(source)):
        assert np.array_equal(np.asarray(source.image(index)), np.asarray(expected.image(index)))


def test_a_tar_archive_is_decoded_by_several_processes(tmp_path):
    originals.image_folder(tmp_path / "in")
    tar(tmp_path / "in", tmp_path / "in.tar")
    for source in ("in", "in.tar"):
        files = ["--source", str(tmp_path / source), "--out", str(tmp_path / f"{source}-out")]
        more = ["--devices", "2", "--size", "16", "--features", "none", "--processes", "2"]
        assert main(["imagefolder", *files, *more]) == 0
    assert are_equal(tmp_path / "in-out", tmp_path / "in.tar-out")


@pytest.mark.parametrize("name", ["../up.jpg", "/etc/up.jpg", "a/../../up.jpg", "..\\up.jpg"])
def test_a_tar_archive_with_a_path_outside_its_folder(tmp_path, capsys, name):
    with tarfile.open(tmp_path / "in.tar", "w") as archive:
        for member in ("a/1.jpg", name):
            info = tarfile.TarInfo(member)
            info.size = 3
            archive.addfile(info, io.BytesIO(b"abc"))
    error = error_of(capsys, "imagefolder", tmp_path / "in.tar")
    assert "whose path leaves the archive's folder" in error


def test_links_and_pipes_in_a_tar_archive_are_left_out_by_name(tmp_path, capsys):
    originals.image_folder(tmp_path / "in")
    path = tar(tmp_path / "in", tmp_path / "in.tar")
    with tarfile.open(path, "a") as archive:
        for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(f"cat/{number}.jpg")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    source = SOURCES["imagefolder"](path)
    assert len(source) == 24
    assert "cat/0.jpg, a link or special file" in " ".join(source.warnings)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_a_truncated_tar_archive(tmp_path, capsys, share):
    originals.image_folder(tmp_path / "in")
    path = tar(tmp_path / "in", tmp_path / "in.tar")
    truncate(path, share)
    assert "in.tar" in error_of(capsys, "imagefolder", path)


@pytest.mark.parametrize(
    ("mode", "program"), [("w:gz", "gzip"), ("w:bz2", "bzip2"), ("w:xz", "xz")]
)
def test_a_compressed_tar_archive_is_named(tmp_path, capsys, mode, program):
    originals.image_folder(tmp_path / "in")
    path = tar(tmp_path / "in", tmp_path / "in.tar.x", mode)
    error = error_of(capsys, "imagefolder", path)
    assert f"in.tar.x is compressed by {program}" in error and "unpack it, or make a .zip" in error


@pytest.mark.parametrize(
    ("start", "program"), [(b"7z\xbc\xaf\x27\x1c", "7-Zip"), (b"Rar!\x1a\x07", "RAR")]
)
def test_another_archive_is_named(tmp_path, capsys, start, program):
    (tmp_path / "in").write_bytes(start + bytes(1000))
    assert f"is compressed by {program}" in error_of(capsys, "imagefolder", tmp_path / "in")


def test_dicom_files_in_a_folder_of_images(tmp_path):
    for n in range(8):
        for folder, name in (("a", f"{n}.dcm"), ("b", f"{n}.DCM"), ("c", f"{n}")):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / name).write_bytes(originals.dicom(originals.lungs(n)))
    source = SOURCES["imagefolder"](tmp_path)
    assert len(source) == 24 and source.class_names == ["a", "b", "c"] and not source.rejected
    assert np.asarray(source.image(0)).shape[:2] == originals.lungs(0).shape

"""Trees of pictures as people and systems leave them: links, archives, leftovers, train and val."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import originals
import picture_files as files
import pytest
from data_prep_helpers import SERIAL, SOURCES, error_of
from PIL import Image

from data_prep.__main__ import main
from data_prep.plugins import make_source
from data_prep.sources.splits import find_splits
from fedgan_mpi.data import Manifest
from fedgan_mpi.errors import UserError

PICTURE = files.encode(Image.new("RGB", (8, 8), (9, 99, 199)), "PNG")


def write(root: Path, *names: str, content: bytes = PICTURE) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def write_zip(path: Path, *names: str, content: bytes = PICTURE) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            info = zipfile.ZipInfo()
            info.filename = name  # the constructor would replace backslashes on Windows
            archive.writestr(info, content)
    return path


def classes(path: Path) -> dict[str, int]:
    """Return the number of images of each class."""
    source = SOURCES["imagefolder"](path)
    assert not source.rejected
    counts = np.bincount(source.labels, minlength=len(source.class_names))
    return dict(zip(source.class_names, counts.tolist(), strict=True))


# ---------------------------------------------------------------- links


def test_links_to_folders_and_files_are_followed(tmp_path):
    write(tmp_path / "store", "dogs/1.png", "dogs/deep/2.png", "cat.png")
    root = write(tmp_path / "in", "cat/1.png")
    (root / "dog").symlink_to(tmp_path / "store" / "dogs")
    (root / "wolf").symlink_to("dog")  # a link to a link
    (root / "cat" / "2.png").symlink_to(tmp_path / "store" / "cat.png")
    assert classes(root) == {"cat": 2, "dog": 1, "dog/deep": 1, "wolf": 1, "wolf/deep": 1}
    (tmp_path / "linked").symlink_to(root)
    assert classes(tmp_path / "linked") == classes(root)


@pytest.mark.parametrize("target", [".", "..", "../cat", "self", "/in"])
def test_links_in_circles_end(tmp_path, target):
    root = write(tmp_path / "in", "cat/1.png", "dog/1.png")
    link = root / "cat" / "again"
    link.symlink_to(target if target != "/in" else root)
    if target == "self":
        link.unlink()
        link.symlink_to("again")
        assert any("cat/again" in reason for reason in SOURCES["imagefolder"](root).rejected)
        return
    source = SOURCES["imagefolder"](root)
    assert source.class_names == ["cat", "dog"] and len(source) == 2
    assert "cat/again, a link to a folder above it (1)" in source.warnings[0]


def test_a_maze_of_links_ends(tmp_path):
    write(tmp_path / "in", "0/1.png")
    for n in range(1, 30):
        (tmp_path / "in" / str(n)).mkdir()
        for name in ("a", "b"):
            (tmp_path / "in" / str(n) / name).symlink_to(f"../{n - 1}")
    with pytest.raises(UserError, match="links lead to this folder more than 100 times"):
        SOURCES["imagefolder"](tmp_path / "in")


def test_a_link_to_nothing_is_named(tmp_path, capsys):
    root = write(tmp_path / "in", "cat/1.png", "dog/1.png")
    (root / "cat" / "2.png").symlink_to("nowhere.png")
    error = error_of(capsys, "imagefolder", root, "--devices=1", "--size=8", "--heldout-share=0")
    assert error.startswith("cat/2.png: ") and "No such file" in error


@pytest.mark.parametrize("name", ["cat/pipe.png", "cat/pipe"])
def test_a_pipe_does_not_hang(tmp_path, capsys, name):
    root = write(tmp_path / "in", "cat/1.png", "dog/1.png")
    os.mkfifo(root / name)
    error = error_of(capsys, "imagefolder", root, "--devices=1", "--size=8", "--heldout-share=0")
    assert error.startswith(f"{name}: ") and "not a regular file" in error


def test_an_unreadable_folder_is_named(tmp_path, monkeypatch):
    root = write(tmp_path / "in", "cat/1.png", "dog/1.png")
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match="dog cannot be read: Permission denied"):
        SOURCES["imagefolder"](root)


# ---------------------------------------------------------------- archives


@pytest.mark.parametrize(
    "names",
    [
        ["cat\\1.png", "dog\\1.png", "dog\\2.png"],
        ["./cat/1.png", "./dog/1.png", "dog/2.png"],
        ["cat//1.png", "dog//1.png", "dog/2.png"],
        ["cat/", "cat/1.png", "dog/", "dog/1.png", "dog/2.png"],
        ["cat\\", "cat\\1.png", "dog\\", "dog\\1.png", "dog/2.png"],
        ["cat/1.png", "dog/1.png", "dog/2.png", "__MACOSX/cat/._1.png", "cat\\Thumbs.db"],
    ],
)
def test_members_of_archives_keep_their_classes(tmp_path, names):
    source = SOURCES["imagefolder"](write_zip(tmp_path / "x.zip", *names))
    assert source.class_names == ["cat", "dog"] and source.labels.tolist() == [0, 1, 1]
    assert source.image(2).size == (8, 8)


def test_a_repeated_member_is_one_image(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = write_zip(tmp_path / "x.zip", "cat/1.png", "dog/1.png", "dog/1.png", "dog\\1.png")
    source = SOURCES["imagefolder"](path)
    assert len(source) == 2
    assert "dog/1.png, a repeated member (2)" in source.warnings[0]


@pytest.mark.parametrize("name", ["..\\up.png", "\\up.png", "C:\\up.png", "a\\..\\..\\up.png"])
def test_backslashes_lead_nowhere(tmp_path, name):
    path = write_zip(tmp_path / "x.zip", "cat/1.png", name)
    with pytest.raises(UserError, match="leaves the archive's folder"):
        SOURCES["imagefolder"](path)


# ---------------------------------------------------------------- what is left out

LEFT = [
    "cat/Thumbs.db",
    "cat/thumbs.db",
    "cat/ehthumbs.db",
    "dog/desktop.ini",
    "dog/Desktop.ini",
    "dog/.DS_Store",
    "dog/._1.png",
    "dog/Icon\r",
    "dog/.hidden.png",
    "cat/@eaDir/1.png/SYNOPHOTO_THUMB_M.jpg",
    "@eaDir/1.png",
    "#recycle/old.png",
    "$RECYCLE.BIN/old.png",
    "__MACOSX/cat/._1.png",
    "System Volume Information/x.png",
    "lost+found/1.png",
    ".git/x.png",
    ".ipynb_checkpoints/1-checkpoint.png",
    "cat/.thumbnails/1.png",
    "README",
    "README.md",
    "readme.txt",
    "LICENSE",
    "cat/LICENCE.txt",
    "labels.csv",
    "cat/annotations.json",
    "cat/1.xml",
    "index.html",
    "cat/picasa.ini",
    "CITATION.cff",
    "cat/Read Me.pdf",
    "checksums.sha256",
    "wikipedia.url",
]


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("name", LEFT)
def test_what_is_not_data_is_left_out_and_named(tmp_path, name, zipped):
    names = ["cat/1.png", "dog/1.png", name]
    path = write_zip(tmp_path / "x.zip", *names) if zipped else write(tmp_path / "in", *names)
    source = SOURCES["imagefolder"](path)
    assert source.class_names == ["cat", "dog"] and len(source) == 2 and not source.rejected
    (warning,) = source.warnings
    assert warning.startswith("left out, because they are not data: ") and "(1)" in warning
    named = warning.removeprefix("left out, because they are not data: ").split("/")[0]
    assert named.split(" (1)")[0] in name


def test_the_command_names_what_it_leaves_out_before_it_begins(tmp_path, capsys):
    root = write(tmp_path / "in", "cat/1.png", "dog/1.png", *LEFT)
    options = ["--devices=1", "--size=8", "--heldout-share=0", *SERIAL]
    assert main(["imagefolder", f"--source={root}", f"--out={tmp_path / 'out'}", *options]) == 0
    first = capsys.readouterr().err.splitlines()[0]
    assert "warning: left out" in first and "@eaDir/ (2)" in first and "others" in first
    assert sum(Manifest.read(tmp_path / "out").images) == 2


def test_other_files_are_images_or_named(tmp_path, capsys):
    root = write(tmp_path / "in", "cat/1", "cat/2.jpeg_large", "cat/3.JPG", "dog/scan.img")
    write(root, "dog/4.IMA", content=originals.dicom(originals.lungs(1)))
    source = SOURCES["imagefolder"](root)
    assert len(source) == 5 and [source.image(n).mode for n in range(5)] == ["RGB"] * 3 + [
        "L",
        "RGB",
    ]
    write(root, "dog/notes.docx", content=b"PK\x03\x04")
    write(root, "dog/drawing.eps", content=b"%!PS-Adobe-3.0 EPSF-3.0")
    write(root, "dog/movie.mp4", content=b"\0\0\0\x18ftypmp42")
    assert SOURCES["imagefolder"](root).rejected == [
        "dog/drawing.eps: it is PostScript, a program that is not run; convert it to PNG",
        "dog/movie.mp4: it is not an image",
        "dog/notes.docx: it is a zip archive; unpack it",
    ]
    error = error_of(capsys, "imagefolder", root, "--devices=1", "--size=8")
    assert "dog/notes.docx: it is a zip archive" in error and "--skip-bad" in error


def test_captions_beside_images_are_left_out(tmp_path):
    root = write(tmp_path / "in", "cat/1.png", "dog/2.png")
    write(root, "cat/1.txt", "dog/2.png.cat", "dog/3.txt", content=b"a dog")
    source = SOURCES["imagefolder"](root)
    assert source.rejected == ["dog/3.txt: it is not an image"] and len(source) == 2
    assert "*.txt beside images (1), *.cat beside images (1)" in source.warnings[0]


def test_a_class_name_that_is_not_utf8_can_be_written(tmp_path, capsys):
    root = write(tmp_path / "in", "cat/1.png", os.fsdecode(b"caf\xe9/1.png"))
    options = ["--devices=1", "--size=8", "--heldout-share=0", *SERIAL]
    assert main(["imagefolder", f"--source={root}", f"--out={tmp_path / 'out'}", *options]) == 0
    assert Manifest.read(tmp_path / "out").class_names == ["caf\\xe9", "cat"]
    assert main(["inspect", str(tmp_path / "out")]) == 0


# ---------------------------------------------------------------- train and val

SPLIT = {
    "train, val": (["train/cat", "train/dog", "val/cat", "val/dog"], ["cat", "dog"], {2, 3}),
    "train, test": (["train/cat", "test/cat", "train/dog"], ["cat", "dog"], {1}),
    "three parts": (["train/a", "valid/a", "test/b", "train/b"], ["a", "b"], {1, 2}),
    "capitals": (["Training/a", "Validation/a"], ["a"], {1}),
    "COCO": (["train2017", "val2017"], [], {1}),
    "words": (["Training set/a", "Test set/a"], ["a"], {1}),
    "underscores": (["train_images/a", "test_images/a"], ["a"], {1}),
    "inside classes": (["cat/train", "cat/test", "dog/train"], ["cat", "dog"], {1}),
    "below a folder": (["x/train/a", "x/val/a", "x/train/b"], ["x/a", "x/b"], {1}),
    "twice, as Kaggle's": (["train/train/a", "test/test/a"], ["a"], {1}),
    "held out": (["train", "held-out"], [], {1}),
    "dev": (["train/a/b", "dev/a/b"], ["a/b"], {1}),
}


@pytest.mark.parametrize(("folders", "names", "heldout"), SPLIT.values(), ids=SPLIT.keys())
def test_validation_and_test_folders_are_held_out(tmp_path, folders, names, heldout):
    root = write(tmp_path / "in", *(f"{folder}/{n}.png" for n, folder in enumerate(folders)))
    source = SOURCES["imagefolder"](root)
    assert source.class_names == names
    found = {int(source.keys[index].split("/")[-1][:-4]) for index in source.heldout}
    assert found == heldout
    assert source.warnings[-1].startswith(f"held out: the {len(heldout)} images in ")


NO_SPLIT = {
    "classes": ["cat", "dog"],
    "trains": ["train", "plane", "car"],
    "only train": ["train/cat", "train/dog"],
    "only test": ["test/cat", "test/dog"],
    "words within names": ["test tube", "beaker", "freight train"],
    "flat": ["."],
    "values": ["validated", "tested", "trained"],
}


@pytest.mark.parametrize("folders", NO_SPLIT.values(), ids=NO_SPLIT.keys())
def test_other_folders_are_classes(tmp_path, folders):
    root = write(tmp_path / "in", *(f"{folder}/{n}.png" for n, folder in enumerate(folders)))
    source = SOURCES["imagefolder"](root)
    assert source.heldout is None and not source.warnings
    assert len(source.class_names) == (0 if folders == ["."] else len(folders))


AMBIGUOUS = {
    "another folder": (["train/a", "val/a", "extra/a"], "there is also extra"),
    "a class called test": (["test", "cat", "dog"], "test looks like held-out images"),
    "no train": (["val/a", "test/a"], "test, val hold out all images"),
    "images beside": (["train/a", "val/a", "."], "there is also images outside of it"),
    "both": (["train/val/a", "test/train/a"], "names both a training and a held-out part"),
}


@pytest.mark.parametrize(("folders", "clause"), AMBIGUOUS.values(), ids=AMBIGUOUS.keys())
def test_half_a_split_is_refused_with_the_option_that_helps(tmp_path, capsys, folders, clause):
    root = write(tmp_path / "in", *(f"{folder}/{n}.png" for n, folder in enumerate(folders)))
    error = error_of(capsys, "imagefolder", root)
    assert clause in error and "--source-option splits=ignore" in error
    if "." not in folders:
        source = make_source("imagefolder", root, {"splits": "ignore"})
        assert source.heldout is None and source.class_names == sorted(folders)


def test_the_held_out_file_has_the_images_of_val(tmp_path, capsys):
    root = write(tmp_path / "in", *(f"train/{c}/{n}.png" for c in "ab" for n in range(4)))
    write(root, "val/a/9.png", "val/b/9.png", "test/a/9.png")
    out = tmp_path / "out"
    options = [f"--source={root}", f"--out={out}", "--devices=2", "--size=8", *SERIAL]
    assert main(["imagefolder", *options]) == 0
    assert "warning: held out: the 3 images in test, val" in capsys.readouterr().err
    table = json.loads((out / "shards.json").read_text())
    assert table["heldout_images"] == 3 and sum(table["images"]) == 8
    assert table["class_names"] == ["a", "b"]
    options[1] = f"--out={tmp_path / 'other'}"
    assert main(["imagefolder", *options, "--heldout-share=0.5"]) == 1
    assert "imagefolder has its own held-out images" in capsys.readouterr().err


def test_splits_are_found_in_many_folders_quickly():
    folders = [("train" if n % 5 else "val", f"class {n % 1000}") for n in range(100_000)]
    found = find_splits(folders)
    assert len(found.heldout) == 20_000 and found.folders[1] == ("class 1",)

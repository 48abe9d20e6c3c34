"""Each source reads images and classes from files in the original format."""

from __future__ import annotations

import gzip
import io
import sys
import zipfile
from pathlib import Path

import numpy as np
import originals
import pytest
from data_prep_helpers import DATA, SOURCES
from PIL import Image

from data_prep.download import download
from data_prep.resize import fit_image
from data_prep.sources.base import BadImage
from data_prep.sources.cifar import Cifar10, Cifar100
from data_prep.sources.dicom import decode_dicom
from fedgan_mpi.errors import UserError


def pixels(source, index: int) -> np.ndarray:
    return np.asarray(source.image(index))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("mnist", ""),
        ("mnist", "raw"),
        ("mnist", "MNIST/raw"),
        ("fashion_mnist", "FashionMNIST/raw"),
    ],
)
def test_mnist_reads_idx_files(tmp_path, name, folder, packed):
    images = originals.mnist(tmp_path / folder, packed=packed)
    source = SOURCES[name](tmp_path)
    assert len(source) == 160 and source.heldout.tolist() == list(range(120, 160))
    assert np.array_equal(source.labels, np.arange(160) % 10)
    for index in (0, 119, 120, 159):
        assert np.array_equal(pixels(source, index), images[index])


@pytest.mark.parametrize("archived", [True, False])
@pytest.mark.parametrize(
    ("kind", "files", "classes", "train"),
    [(Cifar10, originals.cifar10_files, 10, 100), (Cifar100, originals.cifar100_files, 100, 200)],
)
def test_cifar_reads_python_2_pickles(tmp_path, kind, files, classes, train, archived):
    members, images = files()
    assert any(b"cnumpy.core.multiarray\n" in content for content in members.values())
    if archived:
        originals.tar(tmp_path / kind.archive, members)
    else:
        originals.unpack(tmp_path, members)
    source = kind(tmp_path)
    assert np.array_equal(source.images, images)
    assert np.array_equal(source.labels, np.arange(len(images)) % classes)
    assert source.heldout[0] == train and len(source.class_names) == classes
    # The file stores channels first, a PIL image stores them last.
    assert np.array_equal(pixels(source, 7), images[7].transpose(1, 2, 0))


@pytest.mark.parametrize("zipped", [True, False])
def test_celeba_reads_tables_and_jpegs(tmp_path, zipped):
    root = tmp_path / "celeba"
    originals.celeba(root)
    if zipped:
        with zipfile.ZipFile(root / "img_align_celeba.zip", "w") as archive:
            for path in sorted((root / "img_align_celeba").iterdir()):
                archive.write(path, f"img_align_celeba/{path.name}")
                path.unlink()
        (root / "img_align_celeba").rmdir()
    source = SOURCES["celeba"](tmp_path)
    assert len(source) == 60 and source.labels is None and not source.warnings
    # Faces 5, 6, 11, 12, … belong to validation and test.
    assert source.heldout.tolist() == [n - 1 for n in range(1, 61) if n % 6 in (5, 0)]
    assert source.attribute("Male")[:4] == ["not Male", "Male", "Male", "not Male"]
    expected = Image.open(io.BytesIO(originals.jpeg(originals.face(3))))
    assert np.array_equal(pixels(source, 2), np.asarray(expected))


def test_celeba_warns_of_wrong_count(tmp_path):
    originals.celeba(tmp_path, announced=202599)
    (warning,) = SOURCES["celeba"](tmp_path).warnings
    assert "202599" in warning and "60" in warning and "list_attr_celeba.txt" in warning


@pytest.mark.parametrize("details", [True, False])
def test_rsna_has_one_image_per_patient(tmp_path, details):
    names = originals.rsna(tmp_path, details=details)
    source = SOURCES["rsna"](tmp_path)
    assert list(source.keys) == names and source.heldout is None
    numbers = np.arange(30) % 3
    assert np.array_equal(source.labels, numbers if details else numbers == 2)
    assert len(source.class_names) == (3 if details else 2)
    assert source.attribute("view")[:2] == ["AP", "PA"]
    assert source.attribute("sex")[:2] == ["F", "M"]
    assert np.array_equal(pixels(source, 0), originals.lungs(0))  # uncompressed
    difference = pixels(source, 1).astype(int) - originals.lungs(1)  # JPEG Baseline
    assert np.abs(difference).max() <= 4


def test_rsna_reads_kaggles_zip(tmp_path):
    originals.rsna(tmp_path / "unpacked", patients=6)
    with zipfile.ZipFile(tmp_path / "rsna.zip", "w") as archive:
        for path in (tmp_path / "unpacked").rglob("*.*"):
            archive.write(path, path.relative_to(tmp_path / "unpacked"))
    source = SOURCES["rsna"](tmp_path / "rsna.zip")
    assert np.array_equal(pixels(source, 2), originals.lungs(2))


def gray(stored: np.ndarray, **settings) -> list[int]:
    """Decode a DICOM file with one row of stored values."""
    image = decode_dicom("x.dcm", originals.dicom(stored[None], **settings))
    return np.asarray(image)[0].tolist()


def test_monochrome1_is_inverted():
    row = np.array([0, 10, 255, 128], np.uint8)
    assert gray(row) == [0, 10, 255, 128]
    assert gray(row, photometric="MONOCHROME1") == [255, 245, 0, 127]


@pytest.mark.parametrize("bits", [12, 16])
def test_bits_above_8_are_scaled_from_full_range(bits):
    top = 2**bits - 1
    row = np.array([0, top // 5, top, top], np.uint16)
    assert gray(row, bits=bits) == [0, 51, 255, 255]
    signed = (row.astype(np.int32) - 2 ** (bits - 1)).astype(np.int16)
    assert gray(signed, bits=bits, signed=True) == [0, 51, 255, 255]


def test_window_is_applied_after_rescaling():
    row = np.array([0, 1000, 1100, 1200, 4000, 0], np.uint16)
    window = {"WindowCenter": "1100.5", "WindowWidth": "201"}
    assert gray(row, bits=12, **window) == [0, 0, 128, 255, 255, 0]
    # The rescaling 2·stored - 1000 moves the values relative to the window.
    rescaled = gray(row, bits=12, RescaleSlope="2", RescaleIntercept="-1000", **window)
    assert rescaled == [0, 0, 255, 255, 255, 0]
    several = {"WindowCenter": ["1100.5", "40"], "WindowWidth": ["201", "80"]}
    assert gray(row, bits=12, **several) == [0, 0, 128, 255, 255, 0]
    exact = gray(
        row, bits=12, VOILUTFunction="LINEAR_EXACT", WindowCenter="1100", WindowWidth="200"
    )
    assert exact == [0, 0, 128, 255, 255, 0]
    sigmoid = gray(row, bits=12, VOILUTFunction="SIGMOID", WindowCenter="1100", WindowWidth="200")
    assert sigmoid[2] == 128 and 0 < sigmoid[1] < 128 < sigmoid[3] < 255


def test_window_equals_pydicoms():
    import pydicom
    from pydicom.pixels import apply_windowing

    row = np.arange(0, 4096, 5, dtype=np.uint16)
    content = originals.dicom(row[None], bits=12, WindowCenter="2000", WindowWidth="1500")
    expected = apply_windowing(row[None], pydicom.dcmread(io.BytesIO(content)))[0] * (255 / 4095)
    decoded = np.asarray(decode_dicom("x.dcm", content))[0]
    assert np.abs(decoded - expected).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("zipped", [True, False])
def test_imagefolder_uses_folders_as_classes(tmp_path, zipped):
    root = tmp_path / "pets"
    originals.image_folder(root)
    (root / ".DS_Store").write_bytes(b"x")
    path = root
    if zipped:
        path = tmp_path / "pets.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted(root.rglob("*.*")):
                archive.write(file, file.relative_to(root))
    source = SOURCES["imagefolder"](path)
    assert source.class_names == ["cat", "dog"] and not source.rejected
    assert source.labels.tolist() == [0] * 12 + [1] * 12
    assert source.keys[1] == "cat/001.png"
    assert np.array_equal(pixels(source, 1), originals.noise(21, 24, 3, seed=1))


def test_flat_folder_has_no_classes(tmp_path):
    originals.image_folder(tmp_path / "x", classes=("all",))
    source = SOURCES["imagefolder"](tmp_path / "x" / "all")
    assert source.labels is None and source.class_names == [] and len(source) == 12


def test_unusual_modes_become_gray_or_rgb_without_clipping(tmp_path):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    Image.fromarray(originals.noise(8, 8, 4)).save(tmp_path / "b.png")
    Image.fromarray(originals.noise(8, 8, 3)).quantize(16).save(tmp_path / "c.gif")
    source = SOURCES["imagefolder"](tmp_path)
    assert [source.image(i).mode for i in range(3)] == ["L", "RGB", "RGB"]
    assert np.array_equal(pixels(source, 0), (ramp // 257).astype(np.uint8))


@pytest.mark.parametrize("channels", [1, 3])
def test_npz_reads_medmnist_files(tmp_path, channels):
    images = originals.medmnist(tmp_path / "x.npz", channels=channels)
    source = SOURCES["npz"](tmp_path / "x.npz")
    assert source.channels == channels and source.heldout.tolist() == list(range(60, 92))
    assert np.array_equal(source.labels, np.arange(92) % 2)
    assert np.array_equal(pixels(source, 61), images[61])


def test_resize_keeps_fitting_image_bit_for_bit():
    image = originals.noise(32, 32, 3)
    for size in (None, 32):
        resized = fit_image(Image.fromarray(image), size and (size, size), 3)
        assert np.array_equal(resized, image.transpose(2, 0, 1))


def test_resize_takes_central_square():
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    resized = fit_image(Image.fromarray(wide), (10, 10), 3)
    assert np.array_equal(resized, np.full((3, 10, 10), 200))


def test_resize_antialiases():
    # A fine chessboard becomes gray; without antialiasing it would remain black and white.
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    small = fit_image(Image.fromarray(board), (8, 8), 1)
    assert small.shape == (1, 8, 8) and np.abs(small.astype(int) - 127).max() <= 3


def test_resize_converts_channels():
    image = np.zeros((4, 4, 3), np.uint8)
    image[..., 1] = 255
    assert np.all(fit_image(Image.fromarray(image), None, 1) == 150)  # 0.587 · 255
    assert fit_image(Image.fromarray(image[..., 1]), None, 3).shape == (3, 4, 4)


@pytest.mark.parametrize("content", [b"", b"nothing", originals.jpeg(originals.face(1))[:2000]])
def test_unreadable_image_is_named(tmp_path, content):
    (tmp_path / "broken.jpg").write_bytes(content)
    with pytest.raises(BadImage, match=r"broken\.jpg: ."):
        SOURCES["imagefolder"](tmp_path).image(0)


@pytest.mark.parametrize("cut", [10, 400, -2000])
def test_unreadable_dicom_is_named(cut):
    with pytest.raises(BadImage, match=r"a\.dcm: ."):
        decode_dicom("a.dcm", originals.dicom(originals.lungs(0))[:cut])


def test_download_uses_torchvision(tmp_path, monkeypatch):
    class Datasets:
        @staticmethod
        def MNIST(root: str, download: bool) -> None:
            assert download
            originals.mnist(Path(root) / "MNIST" / "raw")

        @staticmethod
        def CIFAR10(root: str, download: bool) -> None:
            raise RuntimeError("no route to host")

    monkeypatch.setitem(sys.modules, "torchvision", type("torchvision", (), {"datasets": Datasets}))
    download(SOURCES["mnist"], tmp_path)
    assert len(SOURCES["mnist"](tmp_path)) == 160
    with pytest.raises(UserError, match=r"cifar10 cannot be downloaded.*no route to host"):
        download(SOURCES["cifar10"], tmp_path)
    with pytest.raises(UserError, match="rsna cannot be downloaded"):
        download(SOURCES["rsna"], tmp_path)


@pytest.mark.skipif(not (DATA / "MNIST").exists(), reason="FEDGAN_MPI_DATA has no MNIST")
def test_mnist_reads_original_files():
    source = SOURCES["mnist"](DATA)
    packed = (DATA / "MNIST/raw/t10k-images-idx3-ubyte.gz").read_bytes()
    assert len(source) == 70_000
    assert source.images[60_000:].tobytes() == gzip.decompress(packed)[16:]
    assert np.bincount(source.labels[:60_000])[:3].tolist() == [5923, 6742, 5958]

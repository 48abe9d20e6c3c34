"""A small file that unpacks to gigabytes, or declares them, is refused before it takes memory."""

from __future__ import annotations

import gzip
import io
import os
import resource
import struct
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import originals
import pytest
from data_prep_helpers import SOURCES, error_of


def test_a_member_that_unpacks_to_more_than_a_batch_is_refused(tmp_path, capsys):
    path = tmp_path / "in" / "cifar-10-python.tar.gz"
    path.parent.mkdir()
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        member = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
        member.size = 2**28 + 1

        class Zeros(io.RawIOBase):
            def read(self, size=-1):
                return bytes(size)

        tar.addfile(member, Zeros())
    assert path.stat().st_size < 2e6
    tracemalloc.start()
    try:
        assert "data_batch_1 has 268,435,457 bytes" in error_of(capsys, "cifar10", path.parent)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


def test_a_header_that_announces_a_large_extension_is_refused(tmp_path, capsys):
    """tarfile reads an extended header at once, whatever its size."""
    path = tmp_path / "in" / "cifar-10-python.tar.gz"
    path.parent.mkdir()
    member = tarfile.TarInfo("x")
    member.type, member.size = tarfile.XHDTYPE, 2**33
    path.write_bytes(gzip.compress(member.tobuf(tarfile.GNU_FORMAT) + bytes(2**20)))
    error = error_of(capsys, "cifar10", path.parent)
    assert "cifar-10-python.tar.gz" in error and "more than" in error


# ------------------------------------------------------------ idx


def idx_header(*shape: int) -> bytes:
    return struct.pack(f">I{len(shape)}I", 0x0800 + len(shape), *shape)


def zeros(path: Path, header: bytes, count: int) -> None:
    """Write a gzipped file of a header and zeros."""
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(header)
        for _ in range(count >> 20):
            file.write(bytes(2**20))


IDX: dict[str, tuple[str, bytes, int, str]] = {
    "honest zeros": ("images-idx3", idx_header(2**21, 32, 32), 2**31, "but has only"),
    "more than announced": ("images-idx3", idx_header(40, 28, 28), 2**31, "has more values, but"),
    "2^96 pixels": ("images-idx3", idx_header(*[2**32 - 1] * 3), 0, "but has only"),
    "2^32 labels": ("labels-idx1", idx_header(2**32 - 1), 0, "but has only"),
    "no header": ("images-idx3", b"", 2**31, "is not an idx file of uint8"),
    "no pixels": ("images-idx3", idx_header(40, 0, 0), 0, "announces images of 0×0 pixels"),
    "no rows of pixels": ("images-idx3", idx_header(2**31, 0, 28), 0, "announces images of 0×28"),
    "labels with two dimensions": ("labels-idx1", idx_header(40, 1), 2**20, "not an idx file"),
    "labels more than announced": ("labels-idx1", idx_header(40), 2**31, "has more values, but"),
}


@pytest.fixture
def little_memory():
    """Limits new address space to 1.5 GB. A larger allocation raises MemoryError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 1_500_000_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.parametrize("case", IDX)
def test_an_idx_file_that_unpacks_to_gigabytes(tmp_path, capsys, little_memory, case):
    name, header, count, reason = IDX[case]
    originals.mnist(tmp_path / "in")
    zeros(tmp_path / "in" / f"t10k-{name}-ubyte.gz", header, count)
    error = error_of(capsys, "mnist", tmp_path / "in")
    assert reason in error and f"t10k-{name}-ubyte.gz" in error


def test_a_plain_idx_file_with_holes(tmp_path, capsys, little_memory):
    originals.mnist(tmp_path / "in", packed=False)
    path = tmp_path / "in" / "t10k-images-idx3-ubyte"
    with path.open("r+b") as file:
        file.truncate(2**40)
    assert "t10k-images-idx3-ubyte" in error_of(capsys, "mnist", tmp_path / "in")


def test_a_packed_file_without_its_suffix_is_read(tmp_path):
    """Browsers unpack, or keep, a suffix as they like."""
    images = originals.mnist(tmp_path)
    for path in tmp_path.glob("*.gz"):
        path.rename(path.with_suffix(""))
    assert np.array_equal(SOURCES["mnist"](tmp_path).images[:, 0], images)


# ------------------------------------------------------------ zip archives and folders


def test_a_picture_in_an_archive_that_unpacks_to_gigabytes(tmp_path, capsys, little_memory):
    for size, reason in ((2**30 + 1, "more than 1,073,741,824"), (2**29, "but has only")):
        path = tmp_path / f"{size}.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            with archive.open("a/1.png", "w", force_zip64=True) as file:
                for _ in range(size >> 20):
                    file.write(bytes(2**20))
                file.write(bytes(size % 2**20))
            for n in range(9):
                archive.writestr(f"b/{n}.png", originals.jpeg(originals.face(n)))
        error = error_of(capsys, "imagefolder", path, "--devices", "1")
        assert "a/1.png" in error and reason in error


def make_endless(path, kind):
    """Replace a file by one that is no regular file or has no end."""
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "sparse":
        with path.open("wb") as file:
            file.truncate(2**40)
    else:
        path.symlink_to("/dev/zero")


@pytest.mark.parametrize("kind", ["fifo", "sparse", "device"])
def test_a_picture_that_is_no_file_or_has_no_end(tmp_path, capsys, little_memory, kind):
    source = tmp_path / "in"
    originals.image_folder(source)
    path = source / "dog" / "000.jpg"
    make_endless(path, kind)
    assert "dog/000.jpg" in error_of(capsys, "imagefolder", source, "--devices", "2")


TABLES = {
    "celeba": ["list_attr_celeba.txt", "list_eval_partition.txt"],
    "rsna": ["stage_2_train_labels.csv", "stage_2_detailed_class_info.csv"],
}


@pytest.mark.parametrize("kind", ["fifo", "sparse", "device"])
@pytest.mark.parametrize(
    ("dataset", "table"), [(name, table) for name, tables in TABLES.items() for table in tables]
)
def test_a_table_that_is_no_file_or_has_no_end(
    tmp_path, capsys, little_memory, dataset, table, kind
):
    source = tmp_path / "in"
    getattr(originals, dataset)(source)
    path = source / table
    make_endless(path, kind)
    assert table in error_of(capsys, dataset, source, "--devices", "2")


def test_a_table_of_devices_that_has_no_end(tmp_path, capsys, little_memory):
    originals.image_folder(tmp_path / "in")
    table = tmp_path / "devices.csv"
    table.symlink_to("/dev/zero")
    partition = ["--partition", "by_file", "--map", str(table)]
    assert "devices.csv" in error_of(capsys, "imagefolder", tmp_path / "in", *partition)


def test_an_npz_file_that_declares_gigabytes(tmp_path, capsys, little_memory):
    path = tmp_path / "x.npz"
    for name, shape in (("train_images", (10**12, 28, 28)), ("train_labels", (10**12,))):
        originals.medmnist(path)
        with zipfile.ZipFile(path) as archive:
            members = {member: archive.read(member) for member in archive.namelist()}
        text = str({"descr": "|u1", "fortran_order": False, "shape": shape}).encode()
        npy = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
        with zipfile.ZipFile(path, "w") as archive:
            for member, content in {**members, f"{name}.npy": npy}.items():
                archive.writestr(member, content)
        error = error_of(capsys, "npz", path)
        assert f"{name} declares" in error and "x.npz" in error


@pytest.mark.parametrize("shape", [(40, 0, 0), (40, 28, 0), (40, 0, 28, 3)])
def test_images_without_pixels(tmp_path, capsys, shape):
    np.savez(tmp_path / "x.npz", train_images=np.zeros(shape, np.uint8))
    assert "so the images have no pixels" in error_of(capsys, "npz", tmp_path / "x.npz")

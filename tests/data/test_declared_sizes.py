"""A file that declares more than it holds is refused before memory is taken for it."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fedgan_mpi.data import read_shard, write_shard
from fedgan_mpi.data.npz import open_npz
from fedgan_mpi.data.sizes import check_sizes
from fedgan_mpi.errors import UserError
from fedgan_mpi.evaluation.features import PCA, read_extractor, write_extractor
from fedgan_mpi.hardware.memory import memory_limit
from fedgan_mpi.run.generator_file import load

SHAPE = (1, 4, 4)


@pytest.fixture
def path(tmp_path) -> Path:
    path = tmp_path / "device_0001.h5"
    images = np.random.default_rng(0).integers(0, 256, (23, *SHAPE), dtype=np.uint8)
    write_shard(path, images, np.arange(23) % 3, np.arange(23), {"device": 1})
    return path


@pytest.fixture
def little_memory():
    """Limits new address space to 1.5 GB. A larger allocation raises MemoryError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 1_500_000_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def declare(name: str, shape: tuple[int, ...], dtype: str, **options) -> Callable:
    """Return a function that replaces a dataset by one that is declared and not written."""

    def change(file: h5py.File) -> None:
        if name in file:
            del file[name]
        file.create_dataset(name, shape, dtype, **options)

    return change


def compressed_zeros(name: str, rows: int, tail: tuple[int, ...], dtype: str) -> Callable:
    def change(file: h5py.File) -> None:
        del file[name]
        data = file.create_dataset(
            name, (rows, *tail), dtype, chunks=(2**20, *tail), compression="gzip"
        )
        data[: 2**20] = 0

    return change


CHUNKED = {"chunks": (1000, *SHAPE)}
DECLARED: dict[str, tuple[Callable, str]] = {
    "8 million rows": (declare("images", (8_000_000, *SHAPE), "u1"), "holds 8000000 images, but"),
    "2^60 rows": (declare("images", (2**58, *SHAPE), "u1", **CHUNKED), "images, but shards.json"),
    "rows that are not written": (declare("images", (23, *SHAPE), "u1"), "but the file has 0"),
    "chunks that are not written": (
        declare("images", (23, *SHAPE), "u1", chunks=(2, *SHAPE)), "but the file has 0"
    ),
    "2^40 labels": (declare("labels", (2**40,), "i8", chunks=(1000,)), "labels are int64"),
    "2^40 labels, contiguous": (declare("labels", (2**40,), "i8"), "labels are int64"),
    "labels in two dimensions": (declare("labels", (23, 2**40), "i8", chunks=(1, 9)), "labels are"),
    "labels that are not written": (declare("labels", (23,), "i8"), "declares 184 bytes"),
    "2^40 indices": (declare("indices", (2**40,), "i8", chunks=(1000,)), "indices are int64"),
    "indices of floats": (declare("indices", (23,), "f8"), "indices are float64"),
    "indices that are not written": (declare("indices", (23,), "i8"), "declares 184 bytes"),
    "no pixels": (declare("images", (23, 1, 0, 0), "u1"), "images have shape (23, 1, 0, 0)"),
    "labels of text": (declare("labels", (23,), h5py.string_dtype()), "labels are object"),
    "scalar labels": (declare("labels", (), "i8"), "labels are int64 ()"),
    "a group as labels": (
        lambda file: (file.pop("labels"), file.create_group("labels")), "is damaged"
    ),
    "a group as indices": (
        lambda file: (file.pop("indices"), file.create_group("indices")), "is damaged"
    ),
}  # fmt: skip


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("case", DECLARED)
def test_a_shard_that_declares_more_than_it_holds(path, little_memory, case, in_memory):
    change, reason = DECLARED[case]
    with h5py.File(path, "r+") as file:
        change(file)
    assert path.stat().st_size < 10_000
    with pytest.raises(UserError) as refused:
        read_shard(path, image_shape=SHAPE, in_memory=in_memory, rows=23)
    assert reason in str(refused.value) and str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("in_memory", [True, False])
def test_zeros_that_are_compressed_a_thousandfold(path, little_memory, in_memory):
    """A hostile manifest may describe the same number of images."""
    rows = 2**27
    with h5py.File(path, "r+") as file:
        compressed_zeros("images", rows, SHAPE, "u1")(file)
        compressed_zeros("labels", rows, (), "i8")(file)
    assert path.stat().st_size < 200_000
    with pytest.raises(UserError, match=r"declares [\d,]+ bytes, but has only"):
        read_shard(path, image_shape=SHAPE, in_memory=in_memory, rows=rows)


def test_a_sparse_file_larger_than_memory(path):
    """A file with holes has its declared size, and takes no space on the disk."""
    rows = memory_limit() // 16 + 1
    with h5py.File(path, "r+") as file:
        del file["images"], file["labels"], file["indices"]
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        space = h5py.h5s.create_simple((rows, *SHAPE))
        h5py.h5d.create(file.id, b"images", h5py.h5t.STD_U8LE, space, plist)
    with pytest.raises(UserError, match="more than the memory of this machine"):
        read_shard(path, image_shape=SHAPE, rows=rows)


def test_compressed_images_are_read_as_before(path):
    images = read_shard(path, image_shape=SHAPE).images
    with h5py.File(path, "r+") as file:
        del file["images"]
        file.create_dataset("images", data=images, chunks=(5, *SHAPE), compression="gzip")
    assert np.array_equal(read_shard(path, image_shape=SHAPE, rows=23).images, images)


def test_a_locked_shard_says_locked(path):
    """Another process writes it. Its lock is not a sign of damage."""
    code = "import h5py, sys; f = h5py.File(sys.argv[1], 'r+'); print('open', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout.readline() == b"open\n"
        with pytest.raises(UserError, match="is locked by another process, which has it open"):
            read_shard(path, image_shape=SHAPE)
        writer.communicate(b"\n")
    read_shard(path, image_shape=SHAPE)


# ------------------------------------------------------------ npz


def npz(path: Path, header: str | bytes, content: bytes = b"", method: int = 8) -> Path:
    """Write an archive with one array of any header."""
    text = header if isinstance(header, bytes) else header.encode()
    npy = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + content
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("x.npy", npy)
    return path


def header(shape: object, dtype: object = "|u1", fortran: object = False) -> str:
    return str({"descr": dtype, "fortran_order": fortran, "shape": shape}) + "\n"


BAD_HEADERS: dict[str, str | bytes] = {
    "10^12 bytes": header((10**12,)),
    "10^12 labels": header((10**12,), "<i8"),
    "10^12 images without pixels": header((10**12, 28, 28)),
    "a product that overflows": header((2**62, 2**62)),
    "a negative length": header((-8,)),
    "two negative lengths": header((-2, -4)),
    "a length that is true": header((True, 8)),
    "a length of text": header(("8",)),
    "a list as shape": header([8]),
    "a number as shape": header(8),
    "objects": header((1,), "|O"),
    "records with objects": header((1,), [("a", "|O")]),
    "an unknown type": header((8,), "x9"),
    "a type of 2^30 bytes": header((8,), "|V1073741824"),
    "a number as type": header((8,), 7),
    "no order": "{'descr': '|u1', 'shape': (8,)}",
    "another key": "{'descr': '|u1', 'fortran_order': False, 'shape': (8,), 'x': 1}",
    "a call": "__import__('os').system('touch pwned')",
    "a deep list": "[" * 5000 + "]" * 5000,
    "not text": b"\xff" * 20,
    "nothing": "",
    "fewer bytes": header((9,)),
    "more bytes": header((7,)),
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_a_damaged_header_of_an_array(tmp_path, monkeypatch, little_memory, case):
    monkeypatch.chdir(tmp_path)
    path = npz(tmp_path / "x.npz", BAD_HEADERS[case], bytes(8))
    with pytest.raises((ValueError, SyntaxError, TypeError)), open_npz(path) as arrays:
        arrays.read("x")
    assert [each.name for each in tmp_path.iterdir()] == ["x.npz"]


def test_an_array_of_zeros_that_unpacks_to_gigabytes(tmp_path, little_memory):
    path, length = tmp_path / "x.npz", 2**31
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("x.npy", "w", force_zip64=True) as file,
    ):
        text = header((length,)).encode()
        file.write(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)
        for _ in range(length >> 24):
            file.write(bytes(2**24))
    assert path.stat().st_size < 20e6
    with pytest.raises(ValueError, match="but has only"), open_npz(path) as arrays:
        arrays.read("x")


def test_a_changed_byte_of_an_array_is_noticed(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8)
    np.savez(tmp_path / "x.npz", x=array)
    content = bytearray((tmp_path / "x.npz").read_bytes())
    content[3000] ^= 1
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(zipfile.BadZipFile, match="CRC"), open_npz(tmp_path / "x.npz") as arrays:
        arrays.read("x")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(
    "array",
    [np.arange(24).reshape(2, 3, 4), np.asfortranarray(np.arange(12.0).reshape(3, 4)),
     np.zeros((0, 28, 28), np.uint8), np.float32(3), np.array([], np.int64)],
)  # fmt: skip
def test_arrays_equal_those_of_numpy(tmp_path, save, array):
    save(tmp_path / "x.npz", a=array, b=array)
    with np.load(tmp_path / "x.npz") as expected, open_npz(tmp_path / "x.npz") as arrays:
        assert arrays.names == expected.files == ["a", "b"]
        read = arrays.read("b")
        assert read.dtype == expected["b"].dtype and np.array_equal(read, expected["b"])
        assert read.shape == expected["b"].shape


def test_sizes():
    check_sizes(10, 1000)
    check_sizes(2**22, 2**29)
    with pytest.raises(ValueError, match="declares 1,073,741,824 bytes, but has only 1,000,000"):
        check_sizes(1_000_000, 2**30)
    with pytest.raises(ValueError, match="more than the memory of this machine"):
        check_sizes(2**60, 2**60)


# ------------------------------------------------------------ networks


def generator(directory: Path, **changes: object) -> Path:
    about = {"architecture": "dcgan", "image_shape": [1, 16, 16], "nz": 8, "width": 4, **changes}
    (directory / "generator.json").write_text(json.dumps(about))
    save_file({"a": torch.zeros(3)}, directory / "generator.safetensors")
    return directory / "generator.safetensors"


@pytest.mark.parametrize(
    "changes",
    [{"nz": 65536, "width": 4096}, {"width": 65536}, {"image_shape": [65536, 128, 128]},
     {"image_shape": [1, 128, 128], "width": 8192}, {"class_shares": [1e-5] * 100_000}],
)  # fmt: skip
def test_a_generator_that_declares_a_huge_network(tmp_path, little_memory, changes):
    with pytest.raises(UserError, match="is not a generator of this program, or is damaged"):
        load(generator(tmp_path, **changes))


@pytest.mark.parametrize(
    "changes",
    [{"image_shape": [3, 65536, 65536]}, {"width": 65536}, {"image_shape": [1, 65536, 65536]}],
)
def test_an_extractor_that_declares_huge_directions(tmp_path, little_memory, changes):
    path = tmp_path / "features.safetensors"
    write_extractor(path, PCA((1, 4, 4), 3))
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    table = json.loads(content[8:start])
    metadata = {**json.loads(table["__metadata__"]["extractor"]), **changes}
    table["__metadata__"]["extractor"] = json.dumps(metadata)
    text = json.dumps(table).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[start:])
    with pytest.raises(UserError, match="is not a feature extractor written by data_prep"):
        read_extractor(path)

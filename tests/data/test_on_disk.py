"""Images that stay on disk: equal to the array, few descriptors, and files that change."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from fedgan_mpi.data import shard as shards
from fedgan_mpi.data.on_disk import OPEN_FILES, OnDisk, identity_of
from fedgan_mpi.errors import UserError

SHAPE = (50, 2, 3, 4)
OFFSET = 17


def make_file(path: Path, seed: int, dtype: str = "uint16") -> tuple[OnDisk, np.ndarray]:
    pixels = np.random.default_rng(seed).integers(0, 60000, SHAPE).astype(dtype)
    path.write_bytes(bytes(OFFSET) + pixels.tobytes() + b"more")
    images = OnDisk(
        path=path, offset=OFFSET, shape=SHAPE, dtype=pixels.dtype, identity=identity_of(path)
    )
    return images, pixels


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_rows_equal_those_of_an_array(tmp_path, dtype):
    images, pixels = make_file(tmp_path / "a", 0, dtype)
    stream = np.random.default_rng(1)
    for rows in (
        stream.permutation(50), stream.integers(0, 50, 200), np.arange(10, 30), np.array([49]),
        np.array([], np.int64), np.array([3, 4, 5, 4, 3, 9, 10]), slice(None), slice(5, 40, 3), ...,
    ):  # fmt: skip
        found = images[rows]
        assert found.dtype == pixels.dtype and np.array_equal(found, pixels[rows])
        assert found.flags.writeable and found.flags.c_contiguous


def test_a_thousand_files_need_few_descriptors(tmp_path):
    sets = [make_file(tmp_path / str(n), n) for n in range(OPEN_FILES + 20)]
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        for images, pixels in sets:
            assert np.array_equal(images[7:8], pixels[7:8])
    assert len(os.listdir("/proc/self/fd")) - before <= OPEN_FILES


def test_a_file_that_replaces_another_is_read_anew(tmp_path):
    first, pixels = make_file(tmp_path / "a", 0)
    assert np.array_equal(first[...], pixels)
    (tmp_path / "a").unlink()
    second, others = make_file(tmp_path / "a", 1)
    assert np.array_equal(second[...], others)
    assert np.array_equal(first[...], pixels)  # the one that was verified


def test_a_file_that_is_cut_or_lost_is_named(tmp_path):
    images, _ = make_file(tmp_path / "a", 0)
    os.truncate(tmp_path / "a", OFFSET + 100)
    assert len(images[:1]) == 1
    with pytest.raises(UserError, match="a was cut while this job read it"):
        images[40:]
    lost, _ = make_file(tmp_path / "b", 0)
    (tmp_path / "b").unlink()
    with pytest.raises(UserError, match="b cannot be read: No such file"):
        lost[:1]


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["x"] = 7
    opened = []

    class Lustre(h5py.File):
        def __init__(self, name, mode, locking=None):
            opened.append(locking)
            if locking is not False:
                raise error
            super().__init__(name, mode, locking=locking)

    monkeypatch.setattr(shards.h5py, "File", Lustre)
    error: OSError = OSError(524, "unable to lock file, errno = 524, error message = 'Unknown'")
    with shards.open_hdf5(path) as file:
        assert file["x"][()] == 7
    assert opened == [None, False]
    for error in (BlockingIOError(11, "unable to lock file, errno = 11"), OSError(5, "I/O error")):
        with pytest.raises(type(error)):
            shards.open_hdf5(path)
    assert opened == [None, False, None, None]

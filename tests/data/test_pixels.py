"""Shards of 16 bits: on disk, in memory, in batches on the device, and damaged ones."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from fedgan_mpi.data import Manifest, Shard, check_pixels, read_shard, to_8_bits, write_shard
from fedgan_mpi.errors import UserError
from fedgan_mpi.federation.device_images import Images
from fedgan_mpi.run.generator_file import to_pixels

SHAPE = (2, 4, 5)
EVERY = np.arange(65536, dtype=np.uint16).reshape(-1, 1, 4, 4)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 65536, (23, *SHAPE), dtype=np.uint16)


@pytest.fixture
def path(tmp_path, images) -> Path:
    write_shard(tmp_path / "device_0001.h5", images, None, np.arange(23), {"device": 1})
    return tmp_path / "device_0001.h5"


@pytest.mark.parametrize("in_memory", [True, False])
def test_pixels_come_back(path, images, in_memory):
    shard = read_shard(path, image_shape=SHAPE, dtype="uint16", in_memory=in_memory)
    chosen = np.array([3, 1, 3, 22])
    assert shard.take(chosen).dtype == np.uint16
    assert np.array_equal(shard.take(chosen), images[chosen])
    check_pixels(shard)
    with h5py.File(path) as file:  # contiguous, native numbers, no larger than needed
        assert file["images"].chunks is None and file["images"].dtype == np.uint16
    assert path.stat().st_size < images.nbytes + 2**13


def test_chunked_pixels_are_read_too(path, images):
    with h5py.File(path, "r+") as file:
        del file["images"]
        file.create_dataset("images", data=images, chunks=(2, *SHAPE))
    shard = read_shard(path, image_shape=SHAPE, dtype="uint16", in_memory=False)
    assert np.array_equal(shard.take(np.array([5, 5, 0])), images[[5, 5, 0]])
    shard.images.file.close()


@pytest.mark.parametrize("stored", ["uint8", "int16", "float16", ">u2", "uint32"])
def test_another_type_than_the_manifest_says_is_refused(path, images, stored):
    with h5py.File(path, "r+") as file:
        del file["images"]
        file.create_dataset("images", data=images.astype(stored))
    with pytest.raises(UserError, match=r"images are .*, but must be uint16"):
        read_shard(path, image_shape=SHAPE, dtype="uint16")


def test_16_bits_are_refused_where_8_are_expected(path):
    with pytest.raises(UserError, match="images are uint16, but must be uint8"):
        read_shard(path, image_shape=SHAPE)


@pytest.mark.parametrize("dtype", ["float32", "uint32", 16, None, ["uint8"]])
def test_a_manifest_of_another_type_is_refused(tmp_path, dtype):
    manifest = Manifest(
        format_version=1, dataset="toy", image_shape=SHAPE, class_names=[],
        partition={"name": "iid"}, seed=0, devices=1, images=[23], histograms=[[]],
        pixels_sha256=["0"], sha256="x", heldout=None, heldout_images=0, features=None,
        dtype="uint16",
    )  # fmt: skip
    manifest.write(tmp_path)
    assert Manifest.read(tmp_path).dtype == "uint16" and manifest.bytes_per_image == 80
    text = (tmp_path / "shards.json").read_text()
    table = json.loads(text)
    (tmp_path / "shards.json").write_text(json.dumps({**table, "dtype": dtype}))
    with pytest.raises(UserError, match="dtype"):
        Manifest.read(tmp_path)
    del table["dtype"]  # as before there was such a key
    (tmp_path / "shards.json").write_text(json.dumps(table))
    assert Manifest.read(tmp_path).dtype == "uint8"


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("images", [EVERY, EVERY[:16].astype(np.uint8)], ids=["uint16", "uint8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batches_are_scaled_by_the_type(images, resident, dtype):
    shard = Shard(path=Path("x"), images=images, labels=None, sha256="")
    batches = Images(shard, torch.zeros(0, dtype=dtype), resident=resident)
    order = np.random.default_rng(0).permutation(len(images))
    batch = batches.batch(order)
    white = np.iinfo(images.dtype).max
    exact = images[order].astype(np.float64) / white * 2 - 1
    eps = torch.finfo(dtype).eps
    np.testing.assert_allclose(batch.numpy(), exact, rtol=0, atol=2 * eps)
    assert batch.min() == -1 and batch.max() == 1 and batch.dtype == dtype
    # Every shade is distinct, and is found again in the pixels of a generator that repeats it.
    assert np.array_equal(to_pixels(batch, images.dtype.name), images[order])


def test_pixels_of_8_bits_are_the_nearest():
    exact = [round(n / 257) for n in range(65536)]  # no ties: 257 is odd
    assert np.array_equal(to_8_bits(EVERY).ravel(), exact)
    assert np.array_equal(to_8_bits(EVERY[:16].astype(np.uint8)), EVERY[:16])
    assert to_8_bits(EVERY).dtype == np.uint8

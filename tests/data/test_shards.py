"""The shard format: round trips, batches, and refused files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from fedgan_mpi.data import Batches, Manifest, Shard, check_pixels, read_shard, write_shard
from fedgan_mpi.errors import UserError

SHAPE = (1, 4, 4)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (23, *SHAPE), dtype=np.uint8)


@pytest.fixture
def path(tmp_path, images):
    path = tmp_path / "device_0001.h5"
    write_shard(path, images, np.arange(23) % 3, np.arange(23) * 2, {"device": 1, "names": ["a"]})
    return path


def test_shard_round_trip(path, images):
    shard = read_shard(path, image_shape=SHAPE)
    assert np.array_equal(shard.images, images)
    assert np.array_equal(shard.labels, np.arange(23) % 3)
    with h5py.File(path) as file:
        assert file["images"].chunks is None and file["images"].compression is None
        assert file["indices"].dtype == np.int64
        assert file.attrs["device"] == 1 and json.loads(file.attrs["names"]) == ["a"]
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # no temporary file


def test_attributes_are_in_headers_with_checksums(path, tmp_path):
    """HDF5's heap, with the signature GCOL, has no checksums."""
    assert b"GCOL" not in path.read_bytes()
    long = {"skipped": ["x" * 100] * 1000, "note": ""}  # too long, and empty
    write_shard(tmp_path / "long.h5", np.zeros((1, *SHAPE), np.uint8), None, np.arange(1), long)
    with h5py.File(tmp_path / "long.h5") as file:
        assert json.loads(file.attrs["skipped"]) == long["skipped"] and file.attrs["note"] == ""
    assert b"GCOL" in (tmp_path / "long.h5").read_bytes()  # the signature is searchable


def test_variable_length_text_is_readable(path):
    sha256 = read_shard(path, image_shape=SHAPE).sha256
    with h5py.File(path, "r+") as file:
        assert isinstance(file.attrs["pixels_sha256"], bytes)
        file.attrs["pixels_sha256"] = sha256
        assert isinstance(file.attrs["pixels_sha256"], str)
    assert read_shard(path, image_shape=SHAPE).sha256 == sha256


def test_images_from_disk_equal_images_in_memory(path, images):
    indices = np.array([5, 22, 0, 5, 7])
    for in_memory in (True, False):
        shard = read_shard(path, image_shape=SHAPE, in_memory=in_memory)
        assert np.array_equal(shard.take(indices), images[indices])


def test_a_contiguous_shard_keeps_one_descriptor_open(path):
    def open_count() -> int:
        files = [os.readlink(fd) for fd in Path("/proc/self/fd").iterdir() if fd.exists()]
        return files.count(str(path))

    shard = read_shard(path, image_shape=SHAPE, in_memory=False)
    taken = shard.take(np.array([3, 1]))
    assert open_count() == 1 and taken.shape == (2, *SHAPE)
    with path.open("rb") as file:  # the count detects an open file
        assert open_count() == 2 and file.readable()


def test_chunked_images_are_read_from_open_file(path, images):
    with h5py.File(path, "r+") as file:
        attributes = dict(file.attrs)
        del file["images"]
        file.create_dataset("images", data=images, chunks=(1, *SHAPE), compression="gzip")
        file.attrs.update(attributes)
    shard = read_shard(path, image_shape=SHAPE, in_memory=False)
    assert isinstance(shard.images, h5py.Dataset)
    indices = np.array([5, 22, 0, 5, 7])
    assert np.array_equal(shard.take(indices), images[indices])
    check_pixels(shard)


def numbered(count: int) -> Shard:
    """Return a shard whose image n has the value n."""
    images = np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1)
    return Shard(path=Path("x"), images=images, labels=None, sha256="")


def test_each_epoch_has_each_image_once_in_new_order():
    batches = Batches(numbered(10), batch_size=4, seed=0, device=1)
    drawn = np.concatenate([batches.draw().ravel() for _ in range(10)])
    epochs = drawn.reshape(4, 10)
    for epoch in epochs:
        assert sorted(epoch) == list(range(10))
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_batches_depend_on_seed_device_and_position():
    def draws(seed, device, skip=0):
        batches = Batches(numbered(10), batch_size=4, seed=seed, device=device)
        batches.drawn = 4 * skip
        return np.concatenate([batches.draw().ravel() for _ in range(6 - skip)])

    assert np.array_equal(draws(0, 1), draws(0, 1))
    assert np.array_equal(draws(0, 1)[12:], draws(0, 1, skip=3))
    assert not np.array_equal(draws(0, 1), draws(0, 2))
    assert not np.array_equal(draws(0, 1), draws(1, 1))


def test_batch_is_not_larger_than_shard():
    assert Batches(numbered(3), batch_size=4, seed=0, device=1).draw().shape[0] == 3


def modify(path: Path, damage) -> None:
    with h5py.File(path, "r+") as file:
        damage(file)


def replace(file: h5py.File, name: str, data) -> None:
    del file[name]
    file.create_dataset(name, data=data)


def external(file: h5py.File) -> None:
    del file["images"]
    file["images"] = h5py.ExternalLink("/etc/hostname", "images")


def soft(file: h5py.File) -> None:
    file["other"] = h5py.SoftLink("/images")


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((23, *SHAPE), np.uint8)
    layout[...] = h5py.VirtualSource("elsewhere.h5", "images", (23, *SHAPE))
    del file["images"]
    file.create_virtual_dataset("images", layout)


DAMAGE = {
    "version": (lambda f: f.attrs.__setitem__("format_version", 99), "format_version 99"),
    "dtype": (
        lambda f: replace(f, "images", np.zeros((23, *SHAPE), np.float32)),
        "but must be uint8",
    ),
    "shape": (lambda f: replace(f, "images", np.zeros((23, 4, 4, 1), np.uint8)), "must be N×1×4×4"),
    "rank": (lambda f: replace(f, "images", np.zeros(23, np.uint8)), "must be N×1×4×4"),
    "empty": (lambda f: replace(f, "images", np.zeros((0, *SHAPE), np.uint8)), "holds no images"),
    "no images": (lambda f: f.__delitem__("images"), "no dataset 'images'"),
    "labels": (lambda f: replace(f, "labels", np.zeros(5, np.int64)), "labels are int64"),
    "pixels": (
        lambda f: f["images"].__setitem__((0, 0, 0, 0), f["images"][0, 0, 0, 0] ^ 1),
        "SHA-256",
    ),
    "external link": (external, "a shard must not contain links"),
    "soft link": (soft, "a shard must not contain links"),
    "virtual": (virtual, "refers to another file"),
}


@pytest.mark.parametrize(("damage", "reason"), DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_shard_is_refused(path, damage, reason):
    modify(path, damage)
    with pytest.raises(UserError) as error:
        read_shard(path, image_shape=SHAPE)
    assert reason in str(error.value) and str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_truncated_and_other_files_are_refused(path, tmp_path):
    content = path.read_bytes()
    for length in (0, 1, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"truncated|not a readable HDF5|damaged"):
            read_shard(path, image_shape=SHAPE)
    with pytest.raises(UserError, match="is missing"):
        read_shard(tmp_path / "device_0009.h5", image_shape=SHAPE)
    path.write_bytes(b"PK\3\4" * 1000)
    with pytest.raises(UserError, match="not a readable HDF5"):
        read_shard(path, image_shape=SHAPE)


def manifest(**changes):
    table = {
        "format_version": 1,
        "dataset": "toy",
        "image_shape": [1, 16, 16],
        "class_names": [],
        "partition": {"name": "iid"},
        "seed": 0,
        "devices": 2,
        "images": [3, 4],
        "histograms": [[], []],
        "pixels_sha256": ["a", "b"],
        "sha256": "c",
        "heldout": None,
        "heldout_images": 0,
        "features": None,
    }
    return {**table, **changes}


def test_manifest_round_trip(tmp_path):
    (tmp_path / "shards.json").write_text(json.dumps(manifest()))
    read = Manifest.read(tmp_path)
    assert read.image_shape == (1, 16, 16)
    (tmp_path / "again").mkdir()
    read.write(tmp_path / "again")
    assert Manifest.read(tmp_path / "again") == read


@pytest.mark.parametrize(
    ("labels", "valid"),
    [([0, 1, 1], True), ([0, 0, 1], False), ([0, 1, 2], False), ([0, 1, -1], False), (None, False)],
)
def test_shard_with_unexpected_labels_is_refused(tmp_path, labels, valid):
    table = manifest(class_names=["a", "b"], histograms=[[1, 2], [2, 2]])
    (tmp_path / "shards.json").write_text(json.dumps(table))
    numbers = None if labels is None else np.array(labels)
    shard = Shard(path=Path("x.h5"), images=np.zeros((3, 1, 16, 16), np.uint8), labels=numbers,
                  sha256="a")  # fmt: skip
    if valid:
        Manifest.read(tmp_path).check_shard(shard, 1)
        return
    with pytest.raises(UserError, match=r"x\.h5 has other labels than shards\.json describes"):
        Manifest.read(tmp_path).check_shard(shard, 1)


def test_unexpected_heldout_images_are_refused(tmp_path):
    (tmp_path / "shards.json").write_text(json.dumps(manifest(heldout_sha256="d")))
    shard = Shard(path=Path("heldout.h5"), images=np.zeros((3, 1, 2, 2), np.uint8), labels=None,
                  sha256="d")  # fmt: skip
    Manifest.read(tmp_path).check_heldout(shard)
    shard.sha256 = "a"
    with pytest.raises(UserError, match=r"heldout\.h5 is not the file that"):
        Manifest.read(tmp_path).check_heldout(shard)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "is not valid JSON"),
        ("[]", "format_version None"),
        (json.dumps(manifest(format_version=2)), "format_version 2"),
        (json.dumps({k: v for k, v in manifest().items() if k != "images"}), "lacks keys"),
        (json.dumps(manifest(images=[3])), "contradicts itself"),
        (json.dumps(manifest(devices=0)), "contradicts itself"),
        (json.dumps(manifest(image_shape=[16, 16])), "contradicts itself"),
        (json.dumps(manifest(surprise=1)), "lacks keys"),
    ],
)
def test_invalid_manifest_is_refused(tmp_path, text, reason):
    (tmp_path / "shards.json").write_text(text)
    with pytest.raises(UserError, match=reason):
        Manifest.read(tmp_path)

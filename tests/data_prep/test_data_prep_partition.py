"""Each partition follows its rule, is deterministic, and assigns each image to one device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.partitions import (
    Attribute,
    ByFile,
    Classes,
    Dirichlet,
    Iid,
    Partition,
    Quantity,
    Shards,
)
from data_prep.sources.base import ArraySource, Indices
from data_prep.split import assign_images
from fedgan_mpi.errors import UserError


class Labelled(ArraySource):
    """Blank images with given labels and the attribute "parity"."""

    name = "labelled"
    channels = 1

    def __init__(self, labels: list[int], heldout: Indices | None = None) -> None:
        self.images = np.zeros((len(labels), 1, 1, 1), np.uint8)
        self.labels = np.array(labels, np.int64)
        self.class_names = [str(n) for n in range(max(labels, default=0) + 1)]
        self.heldout = heldout

    def attribute(self, name: str) -> list[str]:
        if name == "parity":
            return [("even", "odd")[n % 2] for n in range(len(self))]
        return list(super().attribute(name))


def split(partition: Partition, labels: list[int], devices: int, seed: int) -> list[Indices]:
    source = Labelled(labels)
    return partition.split(source, np.arange(len(labels)), devices, seed)


def round_robin_table(labels: list[int], devices: int) -> ByFile:
    holders = {str(n): f"site {n % devices}" for n in range(len(labels))}
    return ByFile(sites=[f"site {k}" for k in range(devices)], holders=holders, file="x.csv")


PARTITIONS = {
    "iid": lambda labels, devices: Iid(),
    "dirichlet": lambda labels, devices: Dirichlet(alpha=0.5, min_images=2),
    "classes": lambda labels, devices: Classes(classes=-(-len(set(labels)) // devices)),
    "shards": lambda labels, devices: Shards(blocks=2),
    "quantity": lambda labels, devices: Quantity(alpha=0.5, min_images=2),
    "attribute": lambda labels, devices: Attribute(attributes=["class", "parity"]),
    "by_file": round_robin_table,
}


@pytest.mark.parametrize("name", PARTITIONS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_partition_is_disjoint_complete_and_deterministic(name, data):
    devices = data.draw(st.integers(1, 9), "devices")
    labels = data.draw(st.lists(st.integers(0, 5), min_size=6 * devices, max_size=300), "labels")
    seed = data.draw(st.integers(0, 2**63 - 1), "seed")
    partition = PARTITIONS[name](labels, devices)
    try:
        parts = split(partition, labels, devices, seed)
    except UserError:
        # A device without images is refused, and refused again.
        with pytest.raises(UserError):
            split(partition, labels, devices, seed)
        return
    assert len(parts) == devices and all(len(part) for part in parts)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    assert all(np.all(np.diff(part) > 0) for part in parts)
    again = split(partition, labels, devices, seed)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


LABELS = [n % 10 for n in range(2000)]


@pytest.mark.parametrize("name", ["iid", "dirichlet", "classes", "shards", "quantity"])
def test_split_depends_on_seed(name):
    partition = PARTITIONS[name](LABELS, 8)
    first, second = (split(partition, LABELS, 8, seed) for seed in (0, 1))
    assert any(not np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def classes_of(part: Indices) -> set[int]:
    return {LABELS[n] for n in part}


@settings(max_examples=50, deadline=None)
@given(devices=st.integers(1, 30), classes=st.integers(1, 10), seed=st.integers(0, 1000))
def test_classes_sets_classes_per_device_and_splits_evenly(devices, classes, seed):
    if devices * classes < 10:
        with pytest.raises(UserError, match="cannot hold all 10 classes"):
            split(Classes(classes=classes), LABELS, devices, seed)
        return
    parts = split(Classes(classes=classes), LABELS, devices, seed)
    assert all(len(classes_of(part)) == classes for part in parts)
    for label in range(10):
        sizes = [sum(LABELS[n] == label for n in part) for part in parts]
        sizes = [size for size in sizes if size]
        assert max(sizes) - min(sizes) <= 1
        assert abs(len(sizes) - devices * classes / 10) < 2  # classes have similar device counts


def test_shards_gives_few_classes_and_equal_sizes():
    parts = split(Shards(blocks=2), LABELS, 10, 0)
    assert {len(part) for part in parts} == {200}
    assert all(len(classes_of(part)) <= 2 for part in parts)


def test_small_alpha_is_more_unequal():
    def spread(alpha: float) -> float:
        parts = split(Dirichlet(alpha=alpha), LABELS, 8, 0)
        counts = np.array(
            [[sum(LABELS[n] == c for n in part) for c in range(10)] for part in parts]
        )
        return float((counts / counts.sum(0)).std())

    assert spread(0.1) > 1.5 * spread(1) > 2 * spread(100)


@pytest.mark.parametrize("kind", [Dirichlet, Quantity])
def test_each_device_has_minimum_size(kind):
    for seed in range(20):
        assert min(len(part) for part in split(kind(alpha=0.3), LABELS, 8, seed)) >= 10


def test_full_device_receives_no_later_class():
    # NIID-Bench's rule keeps the sizes near N/K.
    for seed in range(10):
        sizes = [len(part) for part in split(Dirichlet(alpha=0.5), LABELS, 4, seed)]
        assert max(sizes) <= 2000 / 4 + 200  # below N/K before the last class of 200 images


@pytest.mark.parametrize("devices", [3, 4, 7])
def test_attribute_separates_cells(devices):
    parts = split(Attribute(attributes=["parity"]), LABELS, devices, 0)
    parities = [{n % 2 for n in part.tolist()} for part in parts]
    assert all(len(parity) == 1 for parity in parities)
    eight = split(Attribute(attributes=["class"]), LABELS, 8, 0)
    assert [len(classes_of(part)) for part in eight] == [2, 2, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("partition", "devices", "reason"),
    [
        (lambda: Iid(), 2001, "2000 images cannot fill 2001 shards"),
        (lambda: Dirichlet(alpha=0), 8, "--alpha is 0, but must be above 0"),
        (lambda: Dirichlet(alpha=-1), 8, "--alpha is -1, but must be above 0"),
        (lambda: Quantity(alpha=float("nan")), 8, "--alpha is nan"),
        (lambda: Dirichlet(alpha=0.5), 201, "too few for 201 devices with at least 10"),
        (lambda: Dirichlet(alpha=1e-4), 11, "each of 1000 draws with --alpha 0.0001"),
        (lambda: Quantity(alpha=1e-3), 8, "1000 draws with --alpha 0.001"),
        (lambda: Classes(classes=11), 8, "--classes is 11, but must be from 1 to 10"),
        (lambda: Classes(classes=0), 8, "--classes is 0, but must be from 1 to 10"),
        (lambda: Shards(blocks=251), 8, "--blocks is 251, but must be from 1 to 250"),
        (lambda: Attribute(attributes=["hair"]), 8, "no attribute 'hair'; it has class"),
        (lambda: Attribute(attributes=[]), 8, "needs --attributes"),
    ],
)
def test_impossible_partition_is_refused(partition, devices, reason):
    with pytest.raises(UserError) as error:
        split(partition(), LABELS, devices, 0)
    assert reason in str(error.value)


@pytest.mark.parametrize("partition", [Dirichlet(), Classes(), Shards()])
def test_partition_by_class_needs_classes(partition):
    source = Labelled(LABELS)
    source.labels = None
    with pytest.raises(UserError, match="needs classes, but labelled has none"):
        partition.split(source, np.arange(2000), 8, 0)


def write(path: Path, rows: list[str]) -> Path:
    path.write_text("\n".join(rows) + "\n")
    return path


def test_by_file_follows_table(tmp_path):
    rows = [f"{n},{('Oslo', 'Bergen', 'Turku')[n % 3]},x" for n in range(30)]
    path = write(tmp_path / "sites.csv", ["scan,hospital,note", *rows])
    partition = ByFile.read(path, "scan", "hospital")
    assert partition.describe()["sites"] == ["Bergen", "Oslo", "Turku"]
    parts = split(partition, LABELS[:30], partition.devices(None), 0)
    assert [part[0] for part in parts] == [1, 0, 2] and parts[1].tolist() == list(range(0, 30, 3))
    with pytest.raises(UserError, match=r"--devices is 4, but .* names 3"):
        partition.devices(4)


def test_numbered_devices_are_in_numeric_order(tmp_path):
    path = write(tmp_path / "x.csv", ["image,device", *(f"{n},{n}" for n in range(12))])
    assert ByFile.read(path, "image", "device").sites == [str(n) for n in range(12)]


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (["image,device", "0,1"], "has no row for image 1"),
        (["image,device", "0,1", "1,1", "2,1"], "names 2, but labelled has no such image"),
        (["image,device", "0,1", "0,2"], "gives 0 to both 1 and 2"),
        (["image,device", "0,1", "1,"], "line 3: 1 has no device"),
        (["image,site", "0,1"], "has no column 'device'; its columns are image, site"),
    ],
)
def test_contradictory_table_is_refused(tmp_path, rows, reason):
    path = write(tmp_path / "x.csv", rows)
    with pytest.raises(UserError) as error:
        partition = ByFile.read(path, "image", "device")
        split(partition, [0, 1], len(partition.sites), 0)
    assert reason in str(error.value) and str(path) in str(error.value)


def test_heldout_images_are_official_or_a_share():
    official = Labelled(LABELS, heldout=np.arange(1500, 2000))
    parts, heldout = assign_images(official, devices=4, seed=0)
    assert heldout.tolist() == list(range(1500, 2000)) and max(map(max, parts)) == 1499
    with pytest.raises(UserError, match=r"--heldout-share is 0\.5, but .* has its own"):
        assign_images(official, devices=4, seed=0, heldout_share=0.5)
    parts, heldout = assign_images(Labelled(LABELS), devices=4, seed=0, heldout_share=0.1)
    assert len(heldout) == 200
    assert sorted(np.concatenate([*parts, heldout]).tolist()) == list(range(2000))

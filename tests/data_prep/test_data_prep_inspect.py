"""`inspect` lists the devices' data and finds every changed file."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import originals
import pytest
from PIL import Image

from data_prep.__main__ import main
from data_prep.inspect import format_bars
from fedgan_mpi.data import Manifest


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("inspect") / "shards"
    main(["digits", "--devices", "3", "--partition", "dirichlet", "--out", str(out)])
    return out


@pytest.fixture
def shards(tmp_path, digits) -> Path:
    """Return a copy that a test may damage."""
    copy = tmp_path / "shards"
    copy.mkdir()
    for path in digits.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


def test_table_lists_devices(shards, capsys):
    assert main(["inspect", str(shards)]) == 0
    output = capsys.readouterr().out
    manifest = Manifest.read(shards)
    rows = output.splitlines()
    assert "digits, 1×16×16, seed 0, partition: name dirichlet, alpha 0.5" in rows[0]
    for device in (1, 2, 3):
        number, images, classes, size, *bars = rows[1 + device].split()
        assert (int(number), int(images)) == (device, manifest.images[device - 1])
        assert int(classes) == np.count_nonzero(manifest.histograms[device - 1])
        path = shards / f"device_{device:04d}.h5"
        assert int(size.replace(",", "")) == path.stat().st_size
        assert "█" in "".join(bars)
    assert "1,438, and 359 held out" in output and "5 files verified" in output


def test_bars_scale_with_counts():
    assert format_bars([0, 1, 50, 100]) == " ▁▄█"
    assert format_bars([]) == "" and format_bars([0, 0]) == "  "


def flip_a_pixel(directory: Path) -> None:
    with h5py.File(directory / "device_0002.h5", "r+") as file:
        file["images"][5, 0, 3, 3] ^= 1


def flip_a_pixel_and_its_hash(directory: Path) -> None:
    flip_a_pixel(directory)
    import hashlib

    with h5py.File(directory / "device_0002.h5", "r+") as file:
        digest = hashlib.sha256(file["images"][...].tobytes()).hexdigest()
        file.attrs["pixels_sha256"] = digest


def change_a_label(directory: Path) -> None:
    with h5py.File(directory / "device_0003.h5", "r+") as file:
        file["labels"][0] = (file["labels"][0] + 1) % 10


def share_an_image(directory: Path) -> None:
    with h5py.File(directory / "device_0001.h5", "r+") as file:
        other = h5py.File(directory / "device_0002.h5")["indices"][0]
        file["indices"][0] = other


def damage_the_features(directory: Path) -> None:
    path = directory / "features.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def damage_the_manifest(directory: Path) -> None:
    path = directory / "shards.json"
    table = json.loads(path.read_text())
    table["sha256"] = "0" * 64
    path.write_text(json.dumps(table))


def truncate(directory: Path) -> None:
    path = directory / "device_0001.h5"
    path.write_bytes(path.read_bytes()[:20000])


DAMAGE = {
    flip_a_pixel: "device_0002.h5: the pixels do not match",
    flip_a_pixel_and_its_hash: "device_0002.h5 is not the shard of device 2",
    change_a_label: "device_0003.h5 has other labels than shards.json describes",
    share_an_image: "two shards, or a shard and the held-out file, share an image",
    damage_the_features: "features.safetensors does not match",
    damage_the_manifest: "shards.json: sha256 does not match the hashes",
    truncate: "device_0001.h5 is truncated",
    lambda directory: (directory / "device_0003.h5").unlink(): "device_0003.h5 is missing",
    lambda directory: (directory / "heldout.h5").unlink(): "heldout.h5 is missing",
    lambda directory: (directory / "features.safetensors").unlink(): "features.safetensors is",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_changed_file_is_found(shards, capsys, damage):
    damage(shards)
    assert main(["inspect", str(shards)]) == 1
    captured = capsys.readouterr()
    assert DAMAGE[damage] in captured.err and len(captured.err.splitlines()) == 1
    assert "images of each class" in captured.out and "verified" not in captured.out


def test_every_damaged_file_is_named(shards, capsys):
    flip_a_pixel(shards)
    change_a_label(shards)
    damage_the_features(shards)
    assert main(["inspect", str(shards)]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_missing_manifest_is_an_error(tmp_path, capsys):
    assert main(["inspect", str(tmp_path)]) == 1
    assert f"{tmp_path / 'shards.json'} cannot be read" in capsys.readouterr().err


def test_plot_shows_bars_and_images(shards, capsys):
    path = shards.parent / "plot.png"
    assert main(["inspect", str(shards), "--picture", str(path)]) == 0
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    height = len(pixels)
    colored = np.ptp(pixels, axis=2) > 60
    assert colored[: height // 2].mean() > 0.1  # bars in ten colors
    gray = ~colored & (pixels.mean(2) < 200)
    assert gray[height // 2 :].mean() > 0.1  # gray digits
    assert main(["inspect", str(shards), "--picture", str(shards / "no" / "x.png")]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_plot_of_many_devices_without_classes(tmp_path):
    originals.image_folder(tmp_path / "in", classes=("all",), each=60)
    out = tmp_path / "out"
    arguments = ["--source", str(tmp_path / "in" / "all"), "--size", "16", "--devices", "20"]
    assert main(["imagefolder", *arguments, "--out", str(out), "--features", "none"]) == 0
    assert main(["inspect", str(out), "--picture", str(tmp_path / "x.png")]) == 0
    assert (tmp_path / "x.png").stat().st_size > 10_000

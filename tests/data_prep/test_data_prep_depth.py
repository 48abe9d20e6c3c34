"""Shards of 16 bits keep the shades of deep images: files, DICOM, arrays and plug-ins."""

from __future__ import annotations

import json
from fractions import Fraction

import h5py
import numpy as np
import originals
import picture_files as files
import pytest
from data_prep_helpers import SERIAL, error_of
from picture_files import RAMP, shards_of
from PIL import Image

from data_prep.__main__ import main
from data_prep.directory import output_directory
from data_prep.prepare import prepare
from data_prep.sources import Source
from fedgan_mpi.data import Manifest, read_shard
from fedgan_mpi.errors import UserError

GRADIENT = np.linspace(0, 4095, 48 * 64).round().astype(np.uint16).reshape(48, 64)
"""12 bits, 3,072 different values."""
DEEP = ["--depth=16", "--channels=1"]


def expected(values, low, high):
    """Return the shade of each value by the definition, in fractions."""
    shades = [round(Fraction((int(v) - low) * 65535, high - low)) for v in np.ravel(values)]
    return np.array(shades).clip(0, 65535).reshape(np.shape(values))


def test_gradients_of_12_bits_keep_their_shades(tmp_path, capsys):
    scans = {f"{n}.dcm": originals.dicom(GRADIENT.T[:: 1 - 2 * n].T, bits=12) for n in (0, 1)}
    images, table = shards_of(tmp_path, scans, *DEEP, "--size=48x64")
    assert images.dtype == np.uint16 and table["dtype"] == "uint16"
    assert table["range"] == [0, 4095] and len(np.unique(images[0])) > 1000
    assert np.array_equal(images[0, 0], expected(GRADIENT, 0, 4095))
    assert np.array_equal(images[1, 0], images[0, 0][:, ::-1])
    with h5py.File(tmp_path / "out" / "device_0001.h5") as file:
        assert file["images"].dtype == np.uint16 and file["images"].chunks is None
        assert json.loads(file.attrs["range"]) == [0, 4095]
    assert main(["inspect", str(tmp_path / "out"), "--picture", str(tmp_path / "who.png")]) == 0
    assert "1×48×64, 16 bits, seed 0, values 0 to 4095" in capsys.readouterr().out


def test_shards_of_8_bits_lose_shades(tmp_path):
    images, table = shards_of(
        tmp_path, {"a.dcm": originals.dicom(GRADIENT, bits=12)}, "--channels=1", "--size=48x64"
    )
    assert images.dtype == np.uint8 and table["dtype"] == "uint8"
    assert len(np.unique(images)) == 256 and table["range"] == [0, 4095]


WINDOW = {"WindowCenter": 1024, "WindowWidth": 1024}
DICOM = {
    "window": ({"bits": 12, **WINDOW}, [], (512, 1535)),
    "inverted window": ({"bits": 12, "photometric": "MONOCHROME1", **WINDOW}, [], (1535, 512)),
    "declared": ({"bits": 12, **WINDOW}, ["--range=100,3000"], (100, 3000)),
    "rescaled": ({"bits": 12, "RescaleSlope": 2, "RescaleIntercept": -1000}, [], (0, 4095)),
    "inverted": ({"bits": 12, "photometric": "MONOCHROME1"}, [], (4095, 0)),
}


@pytest.mark.parametrize(("tags", "options", "ends"), DICOM.values(), ids=DICOM.keys())
def test_the_rules_of_8_bits_hold_for_16(tmp_path, tags, options, ends):
    content = originals.dicom(GRADIENT, **tags)
    images, _ = shards_of(tmp_path, {"a.dcm": content}, *DEEP, "--size=48x64", *options)
    shades = ((GRADIENT.astype(float) - ends[0]) / (ends[1] - ends[0]) * 65535).clip(0, 65535)
    assert np.abs(images[0, 0] - shades).max() <= 1.0
    assert len(np.unique(images)) > (700 if "Window" in str(tags) and not options else 1000)


def test_files_of_8_bits_get_the_same_black_and_white(tmp_path):
    contents = {
        "a.png": files.encode(Image.fromarray(RAMP.astype(np.uint8)), "PNG"),
        "b.png": files.png16((RAMP * 16).astype(np.uint16)),
        "c.dcm": originals.dicom(RAMP.astype(np.uint8)),
        "d.png": files.encode(Image.fromarray(RAMP % 7 > 3), "PNG"),
    }
    images, table = shards_of(tmp_path, contents, *DEEP, "--size=16")
    assert table["range"] == [0, 4080]
    assert np.array_equal(images[0, 0], RAMP * 257) and np.array_equal(images[2, 0], RAMP * 257)
    assert np.array_equal(images[1, 0], expected(RAMP * 16, 0, 4080))
    assert np.array_equal(images[3, 0], (RAMP % 7 > 3) * 65535)


def test_a_declared_range_holds_for_8_bits_without_rounding_to_8(tmp_path):
    contents = {"a.png": files.encode(Image.fromarray(RAMP.astype(np.uint8)), "PNG")}
    images, _ = shards_of(tmp_path, contents, *DEEP, "--size=16", "--range=-100,300")
    assert np.array_equal(images[0, 0], expected(RAMP, -100, 300))
    assert (np.diff(np.unique(images)) % 257 != 0).any()


def test_colours_and_transparency_of_16_bits(tmp_path):
    colours = np.stack([RAMP * 256 + 3, RAMP[::-1] * 255 + 9, RAMP.T * 257], 2).astype(np.uint16)
    layers = np.dstack([colours, np.full((16, 16), 65535, np.uint16)])
    layers[0, :, 3], layers[1, :, 3] = 0, 32768
    flat = Image.fromarray(np.dstack([RAMP, RAMP, RAMP, RAMP]).astype(np.uint8))
    contents = {
        "a.png": files.png16(colours),
        "b.png": files.png16(layers),
        "c.png": files.encode(flat, "PNG"),
    }
    options = ["--depth=16", "--size=16", "--range=0,65535", "--background=#ff0000"]
    images, _ = shards_of(tmp_path, contents, *options)
    assert np.array_equal(images[0], colours.transpose(2, 0, 1))
    assert np.array_equal(images[1][:, 2:], colours.transpose(2, 0, 1)[:, 2:])
    assert (images[1][:, 0] == np.array([65535, 0, 0])[:, None]).all()
    red = (colours[1, :, 0] * 32768.0 + 65535 * 32767) / 65535
    assert np.abs(images[1][0, 1] - red).max() <= 1
    # Below a declared range, 8 bits are values like all others.
    assert np.abs(images[2][1] - (RAMP / 255) * RAMP).max() <= 1


def test_deep_images_are_turned_upright(tmp_path):
    deep = (RAMP * 256 + RAMP[::-1]).astype(np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees, clockwise
    contents = {"a.png": files.encode(Image.fromarray(deep), "PNG", exif=exif)}
    images, _ = shards_of(tmp_path, contents, *DEEP, "--size=16", "--range=0,65535")
    assert np.array_equal(images[0, 0], np.rot90(deep, -1))


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_resizing_keeps_the_depth(tmp_path, fit):
    """A slope of 16 per pixel, which 8 bits would lose, keeps its values when it shrinks."""
    slope = (1000 + 16 * np.arange(64)[None, :] + np.zeros((64, 1))).astype(np.uint16)
    options = [*DEEP, "--size=32", f"--fit={fit}", "--range=0,65535"]
    images, _ = shards_of(tmp_path, {"a.png": files.png16(slope)}, *options)
    inner = images[0, 0][:, 4:-4].astype(int)
    assert np.abs(inner - (1008 + 32 * np.arange(32))[4:-4]).max() <= 1


def test_padding_is_black_and_overshoot_is_cut(tmp_path):
    edge = np.zeros((32, 64), np.uint16)
    edge[:, 32:] = 65535
    options = [*DEEP, "--size=24", "--range=0,65535"]
    images, _ = shards_of(tmp_path, {"a.png": files.png16(edge)}, *options, "--fit=pad")
    assert (images[0, 0, :5] == 0).all() and images[0, 0, 12, -2:].min() == 65535
    middle = images[0, 0, 12].astype(int)
    assert middle[:12].max() < 10000 and middle[12:].min() > 55000  # nothing wraps round


def test_gray_and_colour_are_converted_as_in_8_bits(tmp_path):
    colours = np.stack([RAMP, RAMP[::-1], RAMP.T], 2).astype(np.uint8)
    contents = {"a.png": files.encode(Image.fromarray(colours), "PNG")}
    deep, _ = shards_of(tmp_path, contents, *DEEP, "--size=16")
    assert np.abs(deep[0, 0] / 257 - np.asarray(Image.fromarray(colours).convert("L"))).max() <= 0.5


@pytest.mark.parametrize(
    ("values", "ends"),
    [
        (np.arange(0, 4096, 16, dtype=np.uint16), (0, 4080)),
        (np.arange(-128, 128, dtype=np.int16) * 9, (-1152, 1143)),
        (np.linspace(-1, 1, 256).astype(np.float32), (-1, 1)),
    ],
    ids=["uint16", "int16", "float32"],
)
@pytest.mark.parametrize("depth", [8, 16])
def test_arrays_of_other_numbers(tmp_path, values, ends, depth):
    images = np.stack([values.reshape(16, 16), values[::-1].reshape(16, 16)])
    np.savez(tmp_path / "a.npz", train_images=images, val_images=images[:1])
    out = tmp_path / "out"
    command = ["npz", "--source", str(tmp_path / "a.npz"), "--out", str(out), "--devices=1"]
    assert main([*command, *SERIAL, f"--depth={depth}"]) == 0
    manifest = Manifest.read(out)
    assert manifest.range == pytest.approx(ends)
    shard = read_shard(
        out / "device_0001.h5", image_shape=manifest.image_shape, dtype=manifest.dtype
    )
    white = 2**depth - 1
    shades = (values - ends[0]) / (ends[1] - ends[0]) * white
    assert shard.images.dtype == f"uint{depth}"
    assert np.abs(shard.images[0].ravel() - shades).max() <= 0.51


def test_a_declared_range_of_arrays(tmp_path):
    np.savez(tmp_path / "a.npz", train_images=GRADIENT[None])
    out = tmp_path / "out"
    command = ["npz", "--source", str(tmp_path / "a.npz"), "--out", str(out), "--devices=1"]
    options = ["--range=0,65535", "--depth=16", "--heldout-share=0"]
    assert main([*command, *SERIAL, *options]) == 0
    shard = read_shard(out / "device_0001.h5", image_shape=(1, 48, 64), dtype="uint16")
    assert np.array_equal(shard.images[0, 0], GRADIENT)


def test_depth_without_effect_and_wrong_depths_are_refused(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    error = error_of(capsys, "digits", tmp_path / "in", "--depth=16")
    assert "--depth 16 has no effect on digits, whose images have 8 bits" in error
    np.savez(tmp_path / "a.npz", train_images=np.zeros((9, 8, 8), np.uint8))
    assert "has no effect on npz" in error_of(capsys, "npz", tmp_path / "a.npz", "--depth=16")
    assert main(["digits", "--out", str(tmp_path / "o"), "--depth=12"]) == 2
    assert "--depth" in capsys.readouterr().err


def test_a_command_does_not_continue_shards_of_another_depth(tmp_path):
    settings = {"devices": 2, "depth": 16}
    with pytest.raises(KeyboardInterrupt), output_directory(tmp_path / "out", settings, 0):
        raise KeyboardInterrupt
    with (
        pytest.raises(UserError, match="an interrupted run with a different depth"),
        output_directory(tmp_path / "out", {**settings, "depth": 8}, 0),
    ):
        pass


class Bands(Source):
    """Signed images of five bands, as a user's own source gives them."""

    channels, is_deep, class_names = 5, True, []

    def __init__(self, path=None, *, bands=5):
        stream = np.random.default_rng(0)
        self.values = stream.integers(-3000, 3000, (10, 12, 16, bands)).astype(np.int16)

    def __len__(self):
        return len(self.values)

    @property
    def keys(self):
        return [str(n) for n in range(len(self))]

    def image(self, index):
        return self.values[index]


@pytest.mark.parametrize("depth", [8, 16])
def test_a_source_of_five_bands(tmp_path, depth):
    options = {"devices": 2, "heldout_share": 0, "depth": depth, "features": "none"}
    manifest = prepare(Bands(), tmp_path / "out", size=(12, 16), **options)
    low, high = Bands().values.min(), Bands().values.max()
    assert manifest.image_shape == (5, 12, 16) and manifest.range == (low, high)
    shard = read_shard(
        tmp_path / "out" / "device_0001.h5", image_shape=(5, 12, 16), dtype=manifest.dtype
    )
    chosen = Bands().values[shard.indices].transpose(0, 3, 1, 2).astype(float)
    shades = (chosen - low) / (high - low) * (2**depth - 1)
    assert np.abs(shard.images - shades).max() <= 0.51
    smaller = prepare(Bands(), tmp_path / "small", size=8, **options)
    assert smaller.image_shape == (5, 8, 8)


def test_channels_that_contradict_are_named(tmp_path):
    with pytest.raises(UserError, match="--channels is 3, but the images of Bands have 5 channels"):
        prepare(Bands(), tmp_path / "out", devices=2, channels=3)
    with pytest.raises(UserError, match="ValueError: it has 4 channels, but must have 5"):
        prepare(Bands(bands=4), tmp_path / "out", devices=1, size=8, value_range=(0, 9))
    shallow = Bands()
    shallow.is_deep = False
    with pytest.raises(UserError, match="it is an array of int16, but is_deep is False"):
        prepare(shallow, tmp_path / "out", devices=1, size=8)

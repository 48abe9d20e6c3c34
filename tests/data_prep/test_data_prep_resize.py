"""How images are fitted to the size of the shards."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from data_prep.__main__ import main
from data_prep.resize import fit_image
from fedgan_mpi.data import Manifest, read_shard


def stripes(height, width):
    """Columns 0, 1, 2, … in red and rows in green."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(width), np.arange(height)[:, None]
    return Image.fromarray(pixels)


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("size", [(40, 60), (8, 8), (13, 90)])
def test_the_result_has_the_size(fit, size):
    for channels in (1, 3):
        assert fit_image(stripes(48, 64), size, channels, fit).shape == (channels, *size)


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_an_image_of_the_size_is_returned_bit_for_bit(fit):
    image = stripes(48, 64)
    assert (fit_image(image, (48, 64), 3, fit) == np.asarray(image).transpose(2, 0, 1)).all()


def test_crop_takes_the_middle():
    square = fit_image(stripes(40, 100), (40, 40), 3)
    assert (square[0] == np.arange(30, 70)).all() and (square[1] == np.arange(40)[:, None]).all()
    wide = fit_image(stripes(100, 40), (20, 40), 3)
    assert (wide[0] == np.arange(40)).all() and (wide[1] == np.arange(40, 60)[:, None]).all()


def test_pad_keeps_the_whole_image_between_black_bars():
    white = Image.new("L", (100, 50), 255)
    padded = fit_image(white, (40, 40), 1, "pad")[0]
    assert (padded[10:30] == 255).all() and (padded[:10] == 0).all() and (padded[30:] == 0).all()


def test_stretch_scales_both_sides_apart():
    stretched = fit_image(stripes(40, 100), (40, 50), 3, "stretch")
    assert abs(stretched[0].astype(int)[:, 5:-5] - np.arange(0.5, 100, 2)[5:-5]).max() <= 1
    assert (stretched[1] == np.arange(40)[:, None]).all()


def test_the_command_writes_rectangular_shards(tmp_path):
    (tmp_path / "in" / "a").mkdir(parents=True)
    for n in range(12):
        stripes(48 + n, 64).save(tmp_path / "in" / "a" / f"{n}.png")
    out = tmp_path / "out"
    command = ["imagefolder", "--source", str(tmp_path / "in"), "--devices", "2", "--out", str(out)]
    assert main([*command, "--size", "24x32", "--fit", "pad"]) == 0
    manifest = Manifest.read(out)
    assert manifest.image_shape == (3, 24, 32)
    shard = read_shard(out / "device_0001.h5", image_shape=(3, 24, 32))
    assert shard.images.shape[1:] == (3, 24, 32)

"""Generated images of 16 bits and of any channels: pictures, arrays, animations."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from data_prep.pictures.formats import open_picture
from data_prep.pictures.samples import read_samples
from fedgan_mpi.errors import UserError
from fedgan_mpi.run.generator_about import read_about
from fedgan_mpi.run.generator_file import TrainedGenerator, load, write_generator
from fedgan_mpi.run.image_grids import grid, write_animation, write_grid, write_samples

GRADIENT = np.linspace(0, 65535, 48 * 64).round().astype(np.uint16).reshape(1, 48, 64)


class Repeats(nn.Module):
    """A generator whose images are all the same picture."""

    def __init__(self, picture):
        super().__init__()
        scaled = torch.from_numpy(picture.astype(np.float32)) / np.iinfo(picture.dtype).max
        self.register_buffer("picture", 2 * scaled - 1)

    def forward(self, z):
        return self.picture.expand(len(z), -1, -1, -1)


def generator_of(picture) -> TrainedGenerator:
    about = {"nz": 4, "image_shape": list(picture.shape), "class_shares": None}
    return TrainedGenerator(network=Repeats(picture), about={**about, "dtype": picture.dtype.name})


def sample(path, picture, count=1):
    options = {"style": "grid", "count": count, "seed": 0, "label": None}
    write_samples(generator_of(picture), path, **options)
    return path.read_bytes()


def decoded(content):
    """Decode a PNG file by data_prep, which reads 16 bits of each colour."""
    image = open_picture("a.png", content)
    return read_samples(image, content).values


def test_a_gradient_of_12_bits_keeps_more_than_1000_gray_levels(tmp_path):
    picture = np.asarray(Image.open(io.BytesIO(sample(tmp_path / "a.png", GRADIENT))))
    assert picture.dtype == np.uint16
    inner = picture[2:-2, 2:-2]  # within the gaps
    assert np.array_equal(inner, GRADIENT[0]) and len(np.unique(inner)) > 1000
    assert (picture[0] == 40 * 257).all()
    shallow = sample(tmp_path / "b.png", (GRADIENT // 257).astype(np.uint8))
    assert len(np.unique(np.asarray(Image.open(io.BytesIO(shallow))))) <= 256


def test_colours_of_16_bits_are_written_with_16_bits(tmp_path):
    colours = np.concatenate([GRADIENT, GRADIENT[:, ::-1], GRADIENT[:, :, ::-1]])
    content = sample(tmp_path / "a.png", colours, count=3)
    picture = decoded(content)
    assert picture.dtype == np.uint16 and picture.shape[2] == 3
    assert np.array_equal(picture[2:50, 2:66], colours.transpose(1, 2, 0))
    high = np.asarray(Image.open(io.BytesIO(content)))  # other readers keep at least the high bytes
    assert np.array_equal(high, picture >> 8)


@pytest.mark.parametrize("channels", [2, 4, 5])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_other_channels_are_gray_panels_side_by_side(tmp_path, channels, dtype):
    stream = np.random.default_rng(0)
    picture = stream.integers(0, np.iinfo(dtype).max, (channels, 48, 64), dtype=dtype)
    drawn = np.asarray(Image.open(io.BytesIO(sample(tmp_path / "a.png", picture))))
    assert drawn.shape == (48 + 4, channels * 64 + 4) and drawn.dtype == dtype
    assert np.array_equal(drawn[2:-2, 2:-2], np.hstack(list(picture)))


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_arrays_hold_all_channels_last(tmp_path, channels, dtype):
    stream = np.random.default_rng(0)
    picture = stream.integers(0, np.iinfo(dtype).max, (channels, 48, 64), dtype=dtype)
    first = sample(tmp_path / "a.npz", picture, count=300)
    with np.load(tmp_path / "a.npz") as arrays:
        images = arrays["images"]
    assert images.dtype == dtype and images.shape == (300, 48, 64, channels)
    assert (images == picture.transpose(1, 2, 0)).all()
    assert sample(tmp_path / "b.npz", picture, count=300) == first


def test_an_animation_has_8_bits(tmp_path):
    for n, picture in enumerate((GRADIENT, GRADIENT[:, ::-1])):
        write_grid(tmp_path / f"round_{n:06d}.png", picture[None])
    write_animation(tmp_path / "a.gif", sorted(tmp_path.glob("*.png")))
    with Image.open(tmp_path / "a.gif") as animation:
        first = np.asarray(animation.convert("L")).astype(int)
        assert animation.n_frames == 2
    assert np.abs(first - grid(GRADIENT[None]) / 257).max() <= 2


def test_the_file_of_a_generator_keeps_the_depth(tmp_path):
    from fedgan_mpi.nn.dcgan import build

    G, _ = build((1, 8, 8), 4, 0, width=4)
    about = {"architecture": "dcgan", "options": {}, "image_shape": [1, 8, 8], "nz": 4}
    about |= {"width": 4, "class_shares": None, "range": [-1000.0, 3000.0]}
    write_generator(tmp_path, "generator", G, {**about, "dtype": "uint16"})
    write_generator(tmp_path, "shallow", G, about)
    deep, shallow = (load(tmp_path / f"{n}.safetensors") for n in ("generator", "shallow"))
    assert deep.about["range"] == [-1000, 3000] and deep(5).dtype == np.uint16
    assert shallow(5).dtype == np.uint8
    assert np.abs(deep(5) / 257 - shallow(5)).max() <= 0.51
    assert deep.interpolate(2, 3).dtype == np.uint16
    text = (tmp_path / "generator.json").read_text()
    (tmp_path / "generator.json").write_text(text.replace('"uint16"', '"uint24"'))
    with pytest.raises(UserError, match="dtype"):
        read_about(tmp_path / "generator.json")

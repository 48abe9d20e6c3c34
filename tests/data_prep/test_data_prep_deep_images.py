"""Images of more than 8 bits become shades by a range: declared, or found in the data set."""

from __future__ import annotations

import numpy as np
import picture_files as files
import pytest
from data_prep_helpers import error_of
from picture_files import RAMP, decode, shards_of
from PIL import Image

from data_prep.__main__ import main
from data_prep.pictures.settings import NeedsRange
from data_prep.sources.image_file import range_of_image_file

# ---------------------------------------------------------------- samples of more than 8 bits

DEEP = {
    "12 bits in PNG": (files.png16((RAMP * 16 + 15).astype(np.uint16)), (15, 4095)),
    "16 bits in PNG": (files.png16((RAMP * 257).astype(np.uint16)), (0, 65535)),
    "10 bits in TIFF": (files.tiff((RAMP * 4).astype(np.uint16)), (0, 1020)),
    "12 bits, big endian": (files.tiff((RAMP * 16).astype(np.uint16), ">"), (0, 4080)),
    "signed 16 bits": (files.tiff((RAMP * 8 - 1000).astype(np.int16)), (-1000, 1040)),
    "signed, big endian": (files.tiff((RAMP * 8 - 1000).astype(np.int16), ">"), (-1000, 1040)),
    "signed 8 bits": (files.tiff((RAMP - 128).astype(np.int8)), (-128, 127)),
    "signed 32 bits": (files.tiff((RAMP * 9000 - 10**6).astype(np.int32)), (-(10**6), 1295000)),
    "unsigned 32 bits": (files.tiff((RAMP * 2**24).astype(np.uint32)), (0, 255 * 2**24)),
    "floats to 1": (files.tiff((RAMP / 255).astype(np.float32)), (0, 1)),
    "floats, big endian": (files.tiff((RAMP / 255).astype(np.float32), ">"), (0, 1)),
    "Hounsfield floats": (files.tiff((RAMP * 10.0 - 1000).astype(np.float32)), (-1000, 1550)),
    "PGM of 16 bits": (
        b"P5 16 16 65535\n" + (RAMP * 257).astype(">u2").tobytes(),
        (0, 65535),
    ),
    "PFM": (b"Pf\n16 16\n-1\n" + (RAMP[::-1] / 255).astype("<f4").tobytes(), (0, 1)),
    "LZW": (
        files.encode(
            Image.fromarray((RAMP * 16).astype(np.uint16)), "TIFF", compression="tiff_lzw"
        ),
        (0, 4080),
    ),
    "deflate": (
        files.encode(
            Image.fromarray((RAMP * 16).astype(np.int32)), "TIFF", compression="tiff_deflate"
        ),
        (0, 4080),
    ),
    "JPEG 2000": (
        files.encode(Image.fromarray((RAMP * 257).astype(np.uint16)), "JPEG2000"),
        (0, 65535),
    ),
}


@pytest.mark.parametrize(("content", "ends"), DEEP.values(), ids=DEEP.keys())
def test_the_range_that_occurs_becomes_all_shades(content, ends):
    found = range_of_image_file("a", content)
    assert found == pytest.approx(ends)
    assert np.abs(decode(content, value_range=found).astype(int) - RAMP).max() <= 1
    with pytest.raises(NeedsRange):
        decode(content, needs_range=True)


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("file", ["PNG", "TIFF", "big endian", "deflate"])
def test_colours_of_16_bits_keep_their_low_bytes(file, channels):
    colours = np.stack([RAMP * 16, RAMP[::-1] * 16, RAMP.T * 16], 2).astype(np.uint16)
    if channels == 4:
        colours = np.dstack([colours, np.full((16, 16), 65535, np.uint16)])
    content = {
        "PNG": lambda: files.png16(colours),
        "TIFF": lambda: files.tiff(colours, alpha=channels == 4),
        "big endian": lambda: files.tiff(colours, ">", alpha=channels == 4),
        "deflate": lambda: files.tiff(colours, alpha=channels == 4, deflate=True),
    }[file]()
    assert range_of_image_file("a", content) is not None
    shades = decode(content, value_range=(0, 4080))
    assert np.array_equal(shades, colours[..., :3] // 16)


def test_gray_with_alpha_of_16_bits_is_composed():
    values = np.dstack([RAMP * 16, np.full((16, 16), 65535)]).astype(np.uint16)
    values[0, :, 1] = 0
    shades = decode(files.png16(values), value_range=(0, 4080))
    assert np.array_equal(shades[1:], RAMP[1:]) and (shades[0] == 255).all()
    colours = np.dstack([values[..., :1]] * 3 + [values[..., 1:]])
    red = decode(files.png16(colours), value_range=(0, 4080), background=(255, 0, 0))
    assert red[0, 0].tolist() == [255, 0, 0] and np.array_equal(red[1:, :, 1], RAMP[1:])


def test_a_transparent_value_of_16_bits_is_composed():
    values = (RAMP * 16).astype(np.uint16)
    content = files.png16(values, files.chunk(b"tRNS", (160).to_bytes(2, "big")))
    shades = decode(content, value_range=(0, 4080))
    assert shades[0, 10] == 255 and shades[0, 9] == 9 and shades[0, 11] == 11


def test_values_beyond_a_declared_range_and_nan_are_cut():
    values = np.array([[-5, 0, 51, 100, 900, np.nan, np.inf, -np.inf]], np.float32)
    ends = {"value_range": (0, 100), "is_declared": True}
    assert decode(files.tiff(values), **ends).tolist() == [[0, 0, 130, 255, 255, 0, 255, 0]]
    assert range_of_image_file("a", files.tiff(values)) == (-5, 900)


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "WEBP", "GIF"])
def test_a_declared_range_holds_for_8_bits_too(format):
    gray = Image.fromarray((RAMP // 16).astype(np.uint8))
    options = {"lossless": True} if format == "WEBP" else {}
    content = files.encode(gray.convert("RGB"), format, **options)
    assert decode(content).max() == 15
    assert decode(content, value_range=(0, 15), is_declared=True).max() == 255
    # A range that was found for deep images does not apply to 8-bit images.
    assert decode(content, value_range=(0, 15)).max() == 15


def test_the_range_of_a_data_set_is_found_and_recorded(tmp_path, capsys):
    contents = {
        "a.png": files.png16(np.full((8, 8), 100, np.uint16)),
        "b.png": files.png16(np.full((8, 8), 4100, np.uint16)),
        "c.tif": files.tiff(np.full((8, 8), 2100, np.uint16)),
        "d.png": files.encode(Image.new("L", (8, 8), 77), "PNG"),
    }
    images, table = shards_of(tmp_path, contents, "--size=8", "--channels=1")
    assert images[:, 0, 0, 0].tolist() == [0, 255, 128, 77]
    assert table["range"] == [100, 4100]
    warning = capsys.readouterr().err
    assert "4 of 4 images use less than 5 % of the range 100 to 4100, such as a.png" in warning
    assert main(["inspect", str(tmp_path / "out")]) == 0
    assert "seed 0, values 100 to 4100, partition" in capsys.readouterr().out


def test_a_declared_range_needs_no_pass_and_is_recorded(tmp_path, capsys):
    contents = {f"{n}.tif": files.tiff((RAMP * 8 - 1000 + n).astype(np.int16)) for n in range(3)}
    images, table = shards_of(tmp_path, contents, "--size=16", "--range", "-1000,1040")
    assert table["range"] == [-1000, 1040] and np.array_equal(images[0, 0], RAMP)
    assert "warning" not in capsys.readouterr().err


def test_images_of_8_bits_have_no_range(tmp_path, capsys):
    contents = {"a.png": files.encode(Image.fromarray(RAMP.astype(np.uint8)), "PNG")}
    images, table = shards_of(tmp_path, contents, "--size=16")
    assert table["range"] is None and np.array_equal(images[0, 0], RAMP)
    assert "warning" not in capsys.readouterr().err


def test_few_shades_are_warned_of_with_numbers(tmp_path, capsys):
    dark = Image.fromarray((RAMP // 64).astype(np.uint8))
    contents = {f"{n}.png": files.encode(dark, "PNG") for n in range(3)}
    shards_of(tmp_path, contents, "--size=16")
    expected = "3 of 3 images use less than 5 % of the range 0 to 255, such as 0.png, about 0 to 3;"
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("text", ["5", "5,5", "9,1", "a,b", "0,inf", "1,2,3", ""])
def test_an_impossible_range_is_refused(tmp_path, capsys, text):
    assert main(["imagefolder", "--source=.", "--out", str(tmp_path / "o"), f"--range={text}"]) == 2
    assert "must be two numbers LOW,HIGH with LOW below HIGH" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--range=0,9", "--background=red"])
def test_an_option_without_effect_is_refused(tmp_path, capsys, option):
    (tmp_path / "in").mkdir()
    assert "has no effect on digits" in error_of(capsys, "digits", tmp_path / "in", option)

"""Transparency, orientation, frames and formats of image files."""

from __future__ import annotations

import numpy as np
import picture_files as files
import pytest
from data_prep_helpers import SERIAL, error_of
from picture_files import RAMP, decode, shards_of
from PIL import Image

from data_prep.__main__ import main
from data_prep.resize import fit_image
from data_prep.sources.base import BadImage
from fedgan_mpi.data import Manifest

# ---------------------------------------------------------------- transparency


def black_on_nothing() -> Image.Image:
    """Return a black square on transparent ground whose hidden colour is black, too."""
    image = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (4, 4, 12, 12))
    return image


def _with_transparent_colour(mode: str) -> bytes:
    image = Image.new("RGB", (16, 16), (1, 2, 3))
    image.paste((0, 0, 0), (4, 4, 12, 12))
    if mode == "P":
        palette = image.quantize(2)
        clear = palette.getpixel((0, 0))
        return files.encode(palette, "PNG", transparency=clear)
    if mode == "L":
        return files.encode(
            image.convert("L").point(lambda v: 9 if v else 0), "PNG", transparency=9
        )
    if mode == "1":
        return files.encode(image.convert("L").point(lambda v: 255 if v else 0).convert("1"), "PNG")
    return files.encode(image, "PNG", transparency=(1, 2, 3))


TRANSPARENT = {
    "RGBA in PNG": files.encode(black_on_nothing(), "PNG"),
    "RGBA in TIFF": files.encode(black_on_nothing(), "TIFF"),
    "RGBA in WebP": files.encode(black_on_nothing(), "WEBP", lossless=True, exact=True),
    "RGBA in JPEG 2000": files.encode(black_on_nothing(), "JPEG2000"),
    "RGBA in ICO": files.encode(black_on_nothing(), "ICO", sizes=[(16, 16)]),
    "RGBA in SGI": files.encode(black_on_nothing(), "SGI"),
    "RGBA in TGA": files.encode(black_on_nothing(), "TGA"),
    "LA in PNG": files.encode(black_on_nothing().convert("LA"), "PNG"),
    "LA in TIFF": files.encode(black_on_nothing().convert("LA"), "TIFF"),
    "LA in JPEG 2000": files.encode(black_on_nothing().convert("LA"), "JPEG2000"),
    "GIF": files.encode(black_on_nothing(), "GIF"),
    "palette": _with_transparent_colour("P"),
    "palette with alpha": files.encode(black_on_nothing().quantize(4), "PNG"),
    "transparent gray": _with_transparent_colour("L"),
    "transparent colour": _with_transparent_colour("RGB"),
}


if "AVIF" in Image.SAVE:  # since Pillow 11.3
    TRANSPARENT["RGBA in AVIF"] = files.encode(black_on_nothing(), "AVIF", quality=100)


@pytest.mark.parametrize("content", TRANSPARENT.values(), ids=TRANSPARENT.keys())
def test_black_art_on_transparent_ground_is_seen(content):
    name = "a.tga" if content[:2] == b"\0\0" and content[2:3] in b"\x02\x0a" else "a.png"
    image = decode(content, name)
    assert image[8, 8].max() <= 2 and image[0, 0].min() >= 253
    blue = decode(content, name, background=(0, 0, 255))
    assert blue.ndim == 3 and blue[0, 0, 2] >= 253 and blue[0, 0, 0] <= 2 and blue[8, 8].max() <= 2


def test_half_transparent_pixels_are_mixed():
    half = files.encode(Image.new("RGBA", (4, 4), (200, 100, 0, 128)), "PNG")
    assert decode(half)[0, 0].tolist() == [227, 177, 127]
    assert decode(half, background=(0, 0, 0))[0, 0].tolist() == [100, 50, 0]
    opaque = Image.fromarray(np.dstack([RAMP] * 3 + [np.full((16, 16), 255)]).astype(np.uint8))
    assert np.array_equal(decode(files.encode(opaque, "PNG"))[..., 0], RAMP)


@pytest.mark.parametrize("colour", ["white", "#ff0000", "rgb(255,0,0)"])
def test_background_is_a_colour(tmp_path, capsys, colour):
    contents = {"a.png": files.encode(black_on_nothing(), "PNG")}
    images, _ = shards_of(tmp_path, contents, "--size=16", "--background", colour)
    assert images[0, :, 0, 0].tolist() == ([255] * 3 if colour == "white" else [255, 0, 0])
    assert main(["imagefolder", "--source=.", "--out=o", "--background=greenish"]) == 2
    assert "greenish must be the name of a colour or #rrggbb" in capsys.readouterr().err


# ---------------------------------------------------------------- EXIF

TALL = Image.fromarray(np.dstack([np.tile(np.arange(0, 240, 10), (12, 1)).T] * 3).astype(np.uint8))
"""24 × 12 pixels, dark above."""


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(orientation):
    content = files.jpeg_with_exif(TALL, files.exif(orientation))
    image = decode(content)
    assert image.shape == ((24, 12, 3) if orientation < 5 else (12, 24, 3))
    edges = {
        1: (0, 0),
        2: (0, 0),
        3: (-1, 0),
        4: (-1, 0),
        5: (0, 0),
        6: (0, -1),
        7: (0, -1),
        8: (0, 0),
    }
    assert image[edges[orientation]].max() < 40


MALFORMED = {
    "empty": b"",
    "no header": b"xx",
    "half a header": b"II*",
    "no table": b"II*\0\xff\xff\xff\x7f",
    "endless table": b"II*\0\x08\0\0\0\xff\xff" + b"\x12\x01" * 40,
    "loop": files.exif(1, next_ifd=8),
    "text orientation": files.exif(6, type_=2),
    "wrong type": files.exif(6, type_=99),
    "huge count": files.exif(6, count=2**31),
    "rational": files.exif(6, type_=5, count=1),
    "orientation 0": files.exif(0),
    "orientation 99": files.exif(99),
    "big endian of little": b"MM\0*" + files.exif(6)[4:],
    "zeros": bytes(200),
    "random": np.random.default_rng(3).bytes(300),
    "header and noise": b"II*\0\x08\0\0\0" + np.random.default_rng(4).bytes(300),
    "undefined type": files.exif(6, type_=7),
    "double": files.exif(6, type_=12, count=1),
    "bytes": files.exif(6, type_=1, count=3),
    "cut entry": files.exif(6)[:-8],
    "cut value": files.exif(6)[:-4],
    "no entries": b"II*\0\x08\0\0\0\0\0\0\0\0\0",
    "offset beyond": b"II*\0\x08\0\0\0\x01\0" + b"\x12\x01\x02\0\xff\0\0\0\xff\xff\xff\x0f\0\0\0\0",
    "GPS to nowhere": b"II*\0\x08\0\0\0\x01\0"
    + b"\x25\x88\x04\0\x01\0\0\0\xff\xff\xff\x0f\0\0\0\0",
}


@pytest.mark.parametrize("block", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_exif_block_loses_no_picture(block):
    image = decode(files.jpeg_with_exif(TALL, block))
    assert image.shape in {(24, 12, 3), (12, 24, 3)}
    assert decode(files.encode(TALL, "PNG", exif=b"Exif\0\0" + block)).shape[2] == 3


def test_whatever_is_raised_on_one_file_concerns_that_file(tmp_path, monkeypatch, capsys):
    contents = {
        f"{n}.png": files.encode(Image.new("RGB", (8, 8), (n, 99, 200)), "PNG") for n in range(6)
    }
    folder = tmp_path / "in"
    folder.mkdir()
    for name, content in contents.items():
        (folder / name).write_bytes(content)

    def resize(image, size, channels, fit):
        if image.getpixel((0, 0))[0] == 3:
            raise SystemError("tile cannot extend outside image")
        return fit_image(image, size, channels, fit)

    monkeypatch.setattr("data_prep.decoder.fit_image", resize)
    options = ["--size=8", "--devices=1"]
    error = error_of(capsys, "imagefolder", folder, *options)
    assert error.startswith("3.png: SystemError: tile cannot extend") and "--skip-bad" in error
    more = [*options, *SERIAL, "--skip-bad=1", f"--out={tmp_path / 'out'}"]
    assert main(["imagefolder", f"--source={folder}", *more]) == 0
    assert len(Manifest.read(tmp_path / "out").skipped) == 1


# ---------------------------------------------------------------- frames and formats


def frames(count: int) -> list[Image.Image]:
    return [Image.new("RGB", (8, 8), (80 * n, 20, 90)) for n in range(count)]


def test_further_frames_are_counted_once(tmp_path, capsys):
    first, *rest = frames(3)
    several = {"save_all": True, "append_images": rest}
    contents = {
        "a.gif": files.encode(first, "GIF", **several),
        "b.tif": files.encode(first, "TIFF", **several),
        "c.webp": files.encode(first, "WEBP", lossless=True, **several),
        "d.png": files.encode(first, "PNG", **several),
        "e.gif": files.encode(first, "GIF"),
        "f.tif": files.encode(first, "TIFF"),
        "h.mpo": files.encode(first, "MPO", **several),
    }
    images, _ = shards_of(tmp_path, contents, "--size=8")
    assert np.abs(images[:, 0].astype(int)).max() <= 3
    error = capsys.readouterr().err
    sentence = "4 files have several frames or pages; only the first of each is used"
    assert error.count(sentence) == 1


FOREIGN = {
    "a.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n{} loop\n", "it is PostScript"),
    "b.png": (b"\xc5\xd0\xd3\xc6" + bytes(40) + b"%!PS", "it is PostScript"),
    "c.gif": (b"%PDF-1.4\n", "it is a PDF document"),
    "d.bmp": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "it is an SVG drawing"),
    "e.tif": (b"\xd7\xcd\xc6\x9a" + bytes(40), "it is a Windows metafile"),
    "f.jpg": (b"\n<!DOCTYPE html><html>404</html>", "it is a web page"),
    "g.jpg": (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
    "h.jpg": (b"\0\0\0\x18ftypheic\0\0\0\0", "it is a HEIC photograph"),
    "i.png": (b"", "it is empty"),
    "j.jpg": (b"8BPS\0\1", "it is a Photoshop file"),
    "k.ppm": (b"GRIB" + bytes(99), "it is not an image"),
    "l.tif": (files.tiff(np.zeros((4, 4), np.float64)), "samples that Pillow cannot read"),
    "m.png": (b"\x89HDF\r\n\x1a\n", "it is an HDF5 file"),
    "n.jpg": (b"PK\x03\x04", "it is a zip archive"),
    "o.tga": (b"\xff" * 60, "it is not an image"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_the_format_is_decided_by_content(monkeypatch, name):
    monkeypatch.setattr("subprocess.Popen", None)  # no other program runs
    content, reason = FOREIGN[name]
    with pytest.raises(BadImage) as error:
        decode(content, name)
    assert str(error.value).startswith(f"{name}: ") and reason in str(error.value)


def test_a_wrong_extension_does_no_harm():
    assert np.array_equal(decode(files.encode(TALL, "PNG"), "a.jpg"), np.asarray(TALL))
    assert decode(files.encode(TALL, "JPEG"), "a.eps").shape == (24, 12, 3)

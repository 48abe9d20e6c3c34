"""Optional attributes of DICOM files: absent, empty, or applied as DICOM says."""

from __future__ import annotations

import io
import logging
import warnings
from pathlib import Path

import numpy as np
import originals
import pydicom
import pytest
from data_prep_helpers import SERIAL
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut

from data_prep.__main__ import main
from data_prep.pictures.settings import NeedsRange, PictureSettings
from data_prep.sources.base import BadImage
from data_prep.sources.dicom import decode_dicom, range_of_dicom
from fedgan_mpi.data import Manifest

ROW = np.array([0, 1000, 1100, 1200, 4000, 0], np.uint16)
WINDOW = {"WindowCenter": "1100.5", "WindowWidth": "201"}
WINDOWED = [0, 0, 128, 255, 255, 0]
SCALED = [0, 62, 68, 75, 249, 0]
"""ROW where 0…4095 becomes 0…255."""


def gray(stored: np.ndarray = ROW, bits: int = 12, settings=None, **tags: object) -> list[int]:
    content = originals.dicom(stored[None], bits=bits, **tags)
    return np.asarray(decode_dicom("x.dcm", content, settings))[0].tolist()


def table(entries: np.ndarray, first: int, depth: int) -> list[Dataset]:
    """Return a sequence of one lookup table."""
    item = Dataset()
    item.LUTDescriptor = [len(entries), first, depth]
    item.LUTData = entries.astype(np.uint16).tobytes()
    item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "OW"
    return [item]


EMPTY = {
    "window": ({"WindowCenter": None, "WindowWidth": None}, SCALED),
    "centre": ({"WindowCenter": "", "WindowWidth": "201"}, SCALED),
    "width": ({"WindowCenter": "1100.5", "WindowWidth": None}, SCALED),
    "no width": ({"WindowCenter": "1100.5"}, SCALED),
    "no centre": ({"WindowWidth": "201"}, SCALED),
    "width 0": ({"WindowCenter": "1100.5", "WindowWidth": "0"}, SCALED),
    "slope": ({**WINDOW, "RescaleSlope": None, "RescaleIntercept": None}, WINDOWED),
    "slope alone": ({**WINDOW, "RescaleSlope": None, "RescaleIntercept": "0"}, WINDOWED),
    "no intercept": (
        {"RescaleSlope": "1", "WindowCenter": "1100.5", "WindowWidth": "201"},
        WINDOWED,
    ),
    "intercept": ({**WINDOW, "RescaleSlope": "1", "RescaleIntercept": ""}, WINDOWED),
    "function": ({**WINDOW, "VOILUTFunction": None}, WINDOWED),
    "blank function": ({**WINDOW, "VOILUTFunction": " "}, WINDOWED),
    "modality table": ({**WINDOW, "ModalityLUTSequence": []}, WINDOWED),
    "VOI table": ({**WINDOW, "VOILUTSequence": []}, WINDOWED),
    "padding": ({**WINDOW, "PixelPaddingValue": None}, WINDOWED),
    "shape": ({**WINDOW, "PresentationLUTShape": ""}, WINDOWED),
    "two windows": ({"WindowCenter": ["1100.5", "9"], "WindowWidth": ["201", "9"]}, WINDOWED),
    "explanation": ({**WINDOW, "WindowCenterWidthExplanation": ""}, WINDOWED),
}


@pytest.mark.parametrize(("tags", "expected"), EMPTY.values(), ids=EMPTY.keys())
def test_an_empty_attribute_is_an_absent_one(tags, expected):
    assert gray(**tags) == expected


@pytest.mark.parametrize("function", ["linear", "Linear ", "LINEAR"])
def test_a_function_may_be_in_lower_case(function):
    assert gray(**WINDOW, VOILUTFunction=function) == WINDOWED
    assert gray(WindowCenter="1100", WindowWidth="200", VOILUTFunction="linear_exact") == WINDOWED
    sigmoid = gray(WindowCenter="1100", WindowWidth="200", VOILUTFunction="sigmoid")
    assert sigmoid[2] == 128 and 0 < sigmoid[1] < 128


def test_an_unknown_function_is_named():
    with pytest.raises(BadImage, match="CUBIC"):
        gray(**WINDOW, VOILUTFunction="CUBIC")


@pytest.mark.parametrize("depth", [8, 12, 16])
def test_a_voi_table_is_applied(depth):
    top = 2**depth - 1
    entries = np.linspace(top, 0, 4096)  # inverts
    expected = [255 - value for value in gray()]
    found = gray(VOILUTSequence=table(entries, 0, depth), **WINDOW)  # the table comes first
    assert np.abs(np.array(found) - expected).max() <= 1


def test_a_voi_table_starts_at_a_value():
    entries = np.arange(0, 256)
    assert gray(VOILUTSequence=table(entries, 1000, 8)) == [0, 0, 100, 200, 255, 0]


def test_a_modality_table_is_applied():
    entries = np.minimum(np.arange(4096) * 2, 4095)
    scaled = gray(ModalityLUTSequence=table(entries, 0, 12))
    assert scaled == [0, 125, 137, 149, 255, 0]
    windowed = gray(
        ModalityLUTSequence=table(entries, 0, 12), WindowCenter="2200.5", WindowWidth="401"
    )
    assert windowed == WINDOWED


@pytest.mark.parametrize(
    ("photometric", "shape", "is_inverse"),
    [
        ("MONOCHROME2", "INVERSE", True),
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME1", "INVERSE", True),
        ("MONOCHROME1", None, True),
        ("MONOCHROME2", "inverse", True),
    ],
)
def test_an_inverse_presentation_inverts_once(photometric, shape, is_inverse):
    found = gray(**WINDOW, photometric=photometric, PresentationLUTShape=shape)
    assert found == ([255 - value for value in WINDOWED] if is_inverse else WINDOWED)


def test_a_negative_slope_inverts():
    row = np.array([0, 100, 255], np.uint8)
    assert gray(row, bits=8, RescaleSlope="-1", RescaleIntercept="255") == [255, 155, 0]
    assert gray(row, bits=8, RescaleSlope="2", RescaleIntercept="-9") == [0, 100, 255]
    assert gray(RescaleSlope="-1", RescaleIntercept="0") == [255 - value for value in SCALED]


def test_a_declared_range_replaces_the_window_and_counts_rescaled_values():
    settings = PictureSettings(value_range=(-100, 200), is_declared=True)
    tags = {**WINDOW, "RescaleSlope": "1", "RescaleIntercept": "-1000"}
    assert gray(settings=settings, **tags) == [0, 85, 170, 255, 255, 0]


def test_a_found_range_serves_files_that_do_not_say_their_own():
    settings = PictureSettings(value_range=(1000, 1255))
    assert gray(settings=settings) == [0, 0, 100, 200, 255, 0]
    assert gray(settings=settings, **WINDOW) == WINDOWED
    row = np.array([0, 100, 255], np.uint8)
    assert gray(row, bits=8, settings=settings) == [0, 100, 255]
    with pytest.raises(NeedsRange):
        gray(settings=PictureSettings(needs_range=True))


def test_padding_is_no_part_of_the_range():
    row = np.array([-2000, -900, 0, 1000], np.int16)
    content = originals.dicom(row[None], bits=16, signed=True)
    assert range_of_dicom(content) == (-2000, 1000)
    content = originals.dicom(row[None], bits=16, signed=True, PixelPaddingValue=-2000)
    assert range_of_dicom(content) == (-900, 1000)
    assert range_of_dicom(originals.dicom(ROW[None], bits=12, **WINDOW)) is None


@pytest.mark.parametrize(
    ("name", "shades"),
    [
        ("CT_small.dcm", 200),
        ("JPEG2000.dcm", 200),
        ("rtdose_1frame.dcm", 40),
        ("MR_small.dcm", 150),
    ],
)
def test_pydicoms_own_files_keep_their_shades(name, shades):
    content = Path(pydicom.data.get_testdata_file(name)).read_bytes()
    found = range_of_dicom(content)
    image = np.asarray(decode_dicom(name, content, PictureSettings(value_range=found)))
    assert len(np.unique(image)) > shades
    if found is not None:
        file = pydicom.dcmread(io.BytesIO(content))
        values = apply_modality_lut(file.pixel_array, file)
        low, high = values.min(), values.max()
        assert np.abs(image - (values - low) / (high - low) * 255).max() <= 0.51


def test_every_file_of_pydicom_is_decoded_or_refused_in_a_sentence(monkeypatch):
    """Files of scanners, of other kinds of objects, and damaged ones."""
    monkeypatch.setattr(logging.getLogger("pydicom"), "disabled", True)
    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    decoded = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in paths:
            try:
                decode_dicom(path.name, path.read_bytes())
                decoded += 1
            except BadImage as error:
                assert str(error).startswith(f"{path.name}: ") and "\n" not in str(error)
    assert len(paths) > 100 and decoded > 40


def test_rsna_finds_the_range_of_its_files(tmp_path):
    names = originals.rsna(tmp_path / "in", patients=6)
    for n, name in enumerate(names):
        row = np.full((8, 8), 100 * n - 200, np.int16)
        content = originals.dicom(row, bits=16, signed=True)
        (tmp_path / "in" / "stage_2_train_images" / f"{name}.dcm").write_bytes(content)
    options = ["--devices=1", "--heldout-share=0", "--size=8", *SERIAL]
    arguments = ["rsna", f"--source={tmp_path / 'in'}", *options]
    assert main([*arguments, f"--out={tmp_path / 'out'}"]) == 0
    manifest = Manifest.read(tmp_path / "out")
    assert manifest.range == (-200, 300)
    assert main([*arguments, "--range=-200,100", f"--out={tmp_path / 'declared'}"]) == 0
    assert Manifest.read(tmp_path / "declared").range == (-200, 100)

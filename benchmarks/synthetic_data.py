"""Writes directories in the formats of CelebA and RSNA, with JPEG files of realistic size.

Images are smooth with some noise, so that their files are as large as the original ones.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
from PIL import Image


def photograph(height: int, width: int, channels: int, seed: int) -> np.ndarray:
    """Return uint8 pixels (H, W, 3), or (H, W) for one channel."""
    stream = np.random.default_rng(seed)
    coarse = stream.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    noisy = np.clip(image + stream.normal(size=image.shape) * 6, 0, 255).astype(np.uint8)
    return noisy if channels == 3 else noisy[..., 0]


def jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_celeba(directory: Path, count: int, different: int) -> None:
    """Write `count` faces, of which `different` are files and the others hard links to them."""
    images = directory / "img_align_celeba"
    images.mkdir(parents=True)
    attributes, split = [], []
    for n in range(count):
        path = images / f"{n + 1:06d}.jpg"
        if n < different:
            path.write_bytes(jpeg(photograph(218, 178, 3, n)))
        else:
            os.link(images / f"{n % different + 1:06d}.jpg", path)
        attributes.append(f"{path.name}  1 -1  1 -1")
        split.append(f"{path.name} {2 * (n % 8 == 7)}")
    header = f"{count}\n5_o_Clock_Shadow Male Smiling Young\n"
    (directory / "list_attr_celeba.txt").write_text(header + "\n".join(attributes) + "\n")
    (directory / "list_eval_partition.txt").write_text("\n".join(split) + "\n")


def write_rsna(directory: Path, count: int) -> None:
    """Write `count` chest X-rays as DICOM files with JPEG Baseline, one per patient."""
    images = directory / "stage_2_train_images"
    images.mkdir(parents=True)
    boxes = ["patientId,x,y,width,height,Target"]
    classes = ["patientId,class"]
    for n in range(count):
        patient = f"{n:04x}-patient"
        (images / f"{patient}.dcm").write_bytes(dicom(photograph(1024, 1024, 1, n)))
        is_opacity = n % 3 == 2
        boxes.append(f"{patient},264.0,152.0,213.0,379.0,1" if is_opacity else f"{patient},,,,,0")
        class_name = ("Normal", "No Lung Opacity / Not Normal", "Lung Opacity")[n % 3]
        classes.append(f"{patient},{class_name}")
    (directory / "stage_2_train_labels.csv").write_text("\n".join(boxes) + "\n")
    (directory / "stage_2_detailed_class_info.csv").write_text("\n".join(classes) + "\n")


def dicom(pixels: np.ndarray) -> bytes:
    """Return a DICOM file of gray uint8 pixels (H, W), compressed with JPEG Baseline."""
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGBaseline8Bit, SecondaryCaptureImageStorage, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = JPEGBaseline8Bit
    file = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID = meta.MediaStorageSOPClassUID
    file.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    file.Rows, file.Columns = pixels.shape
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.BitsAllocated, file.BitsStored, file.HighBit = 8, 8, 7
    file.PixelRepresentation = 0
    file.ViewPosition, file.PatientSex = "AP", "F"
    file.PixelData = encapsulate([jpeg(pixels)])
    file["PixelData"].VR = "OB"
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, file, enforce_file_format=True)
    return buffer.getvalue()

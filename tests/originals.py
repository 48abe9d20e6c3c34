"""Writes small data sets in the original file formats."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

RSNA_CLASSES = ["Normal", "No Lung Opacity / Not Normal", "Lung Opacity"]


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


# MNIST and Fashion-MNIST -------------------------------------------------------------------------


def idx(array: np.ndarray) -> bytes:
    """Encode an idx file: magic number 0x000008DD, big-endian sizes, bytes."""
    header = struct.pack(f">I{array.ndim}I", 0x0800 + array.ndim, *array.shape)
    return header + array.tobytes()


def mnist(directory: Path, train: int = 120, test: int = 40, packed: bool = True) -> np.ndarray:
    """Write MNIST's files and return all images (N, 28, 28). Image n has class n % 10."""
    directory.mkdir(parents=True, exist_ok=True)
    images = noise(train + test, 28, 28)
    labels = (np.arange(train + test) % 10).astype(np.uint8)
    for part, rows in (("train", slice(0, train)), ("t10k", slice(train, None))):
        for name, array in (("images-idx3", images[rows]), ("labels-idx1", labels[rows])):
            path = directory / f"{part}-{name}-ubyte"
            if packed:
                path.with_name(path.name + ".gz").write_bytes(gzip.compress(idx(array)))
            else:
                path.write_bytes(idx(array))
    return images


# CIFAR -------------------------------------------------------------------------------------------


class Python2Pickler(pickle._Pickler):
    """Pickles strings and arrays like Python 2's cPickle, which wrote CIFAR's batches."""

    dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012

    def save_string(self, value: str | bytes) -> None:
        raw = value.encode("latin1") if isinstance(value, str) else value
        if len(raw) < 256:
            self.write(pickle.SHORT_BINSTRING + bytes([len(raw)]) + raw)
        else:
            self.write(pickle.BINSTRING + struct.pack("<i", len(raw)) + raw)
        self.memoize(value)

    def save_function(self, value) -> None:
        assert value.__name__ == "_reconstruct"
        self.write(pickle.GLOBAL + b"numpy.core.multiarray\n_reconstruct\n")
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_string
    dispatch[type(np.array(0).__reduce__()[0])] = save_function


def python2_pickle(value: object) -> bytes:
    buffer = io.BytesIO()
    Python2Pickler(buffer, protocol=2).dump(value)
    return buffer.getvalue()


def tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def cifar10_files(batch_size: int = 20) -> tuple[dict[str, bytes], np.ndarray]:
    """Return the members of cifar-10-python.tar.gz and all images (N, 3, 32, 32).

    Image n has class n % 10.
    """
    images = noise(6 * batch_size, 3, 32, 32)
    names = [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"]
    files = {}
    for number, name in enumerate(names):
        rows = np.arange(number * batch_size, (number + 1) * batch_size)
        files[f"cifar-10-batches-py/{name}"] = python2_pickle(
            {
                "batch_label": f"batch {number + 1} of 6",
                "labels": [int(row % 10) for row in rows],
                "data": images[rows].reshape(batch_size, 3072),
                "filenames": [f"image_{row}.png" for row in rows],
            }
        )
    files["cifar-10-batches-py/batches.meta"] = python2_pickle(
        {"num_cases_per_batch": batch_size, "label_names": list("abcdefghij"), "num_vis": 3072}
    )
    files["cifar-10-batches-py/readme.html"] = b"<a>"
    return files, images


def cifar100_files(train: int = 200, test: int = 100) -> tuple[dict[str, bytes], np.ndarray]:
    """Return the members of cifar-100-python.tar.gz and all images (N, 3, 32, 32).

    Image n has class n % 100.
    """
    images = noise(train + test, 3, 32, 32)
    files = {}
    for name, rows in (("train", range(train)), ("test", range(train, train + test))):
        files[f"cifar-100-python/{name}"] = python2_pickle(
            {
                "filenames": [f"{row}.png" for row in rows],
                "batch_label": name,
                "fine_labels": [row % 100 for row in rows],
                "coarse_labels": [row % 20 for row in rows],
                "data": images[list(rows)].reshape(len(rows), 3072),
            }
        )
    names = {"fine_label_names": [f"c{n}" for n in range(100)], "coarse_label_names": ["x"] * 20}
    files["cifar-100-python/meta"] = python2_pickle(names)
    return files, images


def unpack(directory: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


# CelebA ------------------------------------------------------------------------------------------

ATTRIBUTES = ["5_o_Clock_Shadow", "Male", "Smiling", "Young"]


def jpeg(image: np.ndarray, quality: int = 90) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def face(number: int) -> np.ndarray:
    """Return a 218×178 RGB image with a horizontal gradient and a tint that depends on `number`."""
    ramp = np.linspace(0, 255, 178, dtype=np.uint8)
    image = np.empty((218, 178, 3), np.uint8)
    image[...] = ramp[None, :, None]
    image[..., number % 3] = number % 256
    return image


def celeba(directory: Path, count: int = 60, announced: int | None = None) -> None:
    """Write CelebA's files. Faces 5, 11, … are for validation and faces 6, 12, … for test."""
    images = directory / "img_align_celeba"
    images.mkdir(parents=True)
    rows, split = [], []
    for number in range(1, count + 1):
        name = f"{number:06d}.jpg"
        (images / name).write_bytes(jpeg(face(number)))
        signs = [1 if number >> bit & 1 else -1 for bit in range(len(ATTRIBUTES))]
        rows.append(name + " " + " ".join(f"{sign:2d}" for sign in signs))
        split.append(f"{name} { ({5: 1, 0: 2}.get(number % 6, 0)) }")
    header = [str(announced or count), " ".join(ATTRIBUTES) + " "]
    (directory / "list_attr_celeba.txt").write_text("\n".join([*header, *rows]) + "\n")
    (directory / "list_eval_partition.txt").write_text("\n".join(split) + "\n")


# RSNA --------------------------------------------------------------------------------------------


def dicom(
    pixels: np.ndarray,
    *,
    compressed: bool = False,
    photometric: str = "MONOCHROME2",
    bits: int = 8,
    signed: bool = False,
    **tags: object,
) -> bytes:
    """Encode gray pixels as a DICOM file. `compressed` selects JPEG Baseline, as in RSNA."""
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = JPEGBaseline8Bit if compressed else ExplicitVRLittleEndian
    file = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID = meta.MediaStorageSOPClassUID
    file.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    file.Rows, file.Columns = pixels.shape
    file.SamplesPerPixel = 1
    file.PhotometricInterpretation = photometric
    file.BitsStored, file.HighBit = bits, bits - 1
    file.BitsAllocated = 8 if bits == 8 else 16
    file.PixelRepresentation = int(signed)
    for name, value in tags.items():
        setattr(file, name, value)
    if compressed:
        file.PixelData = encapsulate([jpeg(pixels)])
        file["PixelData"].VR = "OB"
    else:
        file.PixelData = pixels.tobytes()
        file["PixelData"].VR = "OB" if bits == 8 else "OW"
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, file, enforce_file_format=True)
    return buffer.getvalue()


def lungs(number: int, side: int = 128) -> np.ndarray:
    """Return a smooth gray image whose brightness depends on `number`."""
    y, x = np.mgrid[:side, :side] / side
    return (100 * x + 100 * y + number % 50).astype(np.uint8)


def rsna(directory: Path, patients: int = 30, details: bool = True) -> list[str]:
    """Write RSNA's files and return the patients.

    Patient n has class n % 3, and two boxes for an opacity. Every second file is JPEG.
    """
    images = directory / "stage_2_train_images"
    images.mkdir(parents=True)
    names = [f"{n:04x}-patient" for n in range(patients)]
    boxes = ["patientId,x,y,width,height,Target"]
    classes = ["patientId,class"]
    for n, name in enumerate(names):
        view = ("AP", "PA")[n % 2]
        content = dicom(lungs(n), compressed=bool(n % 2), ViewPosition=view, PatientSex="FM"[n % 2])
        (images / f"{name}.dcm").write_bytes(content)
        if n % 3 == 2:
            boxes += [f"{name},264.0,152.0,213.0,379.0,1", f"{name},562.0,152.0,256.0,453.0,1"]
            classes += [f"{name},Lung Opacity"] * 2
        else:
            boxes.append(f"{name},,,,,0")
            classes.append(f"{name},{RSNA_CLASSES[n % 3]}")
    (directory / "stage_2_train_labels.csv").write_text("\n".join(boxes) + "\n")
    if details:
        (directory / "stage_2_detailed_class_info.csv").write_text("\n".join(classes) + "\n")
    return names


# Image folders and MedMNIST ----------------------------------------------------------------------


def image_folder(
    directory: Path, classes: tuple[str, ...] = ("cat", "dog"), each: int = 12
) -> None:
    """Write PNG and JPEG files of different sizes, one folder per class."""
    for label, name in enumerate(classes):
        (directory / name).mkdir(parents=True)
        for n in range(each):
            image = Image.fromarray(noise(20 + n, 24, 3, seed=100 * label + n))
            image.save(directory / name / f"{n:03d}.{'png' if n % 2 else 'jpg'}")


def medmnist(path: Path, sizes: tuple[int, ...] = (60, 12, 20), channels: int = 1) -> np.ndarray:
    """Write an .npz file in MedMNIST's format and return all images as stored.

    Image n has class n % 2. Labels have shape (N, 1).
    """
    shape = (28, 28) if channels == 1 else (28, 28, 3)
    images = noise(sum(sizes), *shape)
    arrays, start = {}, 0
    for part, size in zip(("train", "val", "test"), sizes, strict=True):
        arrays[f"{part}_images"] = images[start : start + size]
        arrays[f"{part}_labels"] = (np.arange(start, start + size)[:, None] % 2).astype(np.uint8)
        start += size
    np.savez_compressed(path, **arrays)
    return images

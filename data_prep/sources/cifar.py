"""CIFAR-10 and CIFAR-100 in their Python version: pickles, in an archive or unpacked."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from data_prep.sources.base import ArraySource, name_file_in_errors
from fedgan_mpi.errors import UserError

_SHAPE = (3, 32, 32)
# All globals of the original pickles, under their old and new numpy modules.
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),  # for bytes pickled by Python 3 in protocol 2
}


class RestrictedUnpickler(pickle.Unpickler):
    """Builds only dicts, lists, strings, numbers and arrays.

    A normal unpickler calls any function that the file names.
    """

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, which is not allowed")
        return super().find_class(module, name)


class Cifar10(ArraySource):
    """50,000 + 10,000 photographs, 32×32, of 10 classes: cifar-10-python.tar.gz or its folder."""

    name = "cifar10"
    torchvision = "CIFAR10"
    channels = 3

    archive: ClassVar[str] = "cifar-10-python.tar.gz"
    folder: ClassVar[str] = "cifar-10-batches-py"
    train: ClassVar[list[str]] = [f"data_batch_{n}" for n in range(1, 6)]
    test: ClassVar[str] = "test_batch"
    labels_key: ClassVar[str] = "labels"
    names: ClassVar[tuple[str, str]] = ("batches.meta", "label_names")

    def __init__(self, path: Path) -> None:
        files = self._open(path)
        names_file, names_key = self.names
        meta = self._unpickle(files, names_file)
        if not isinstance(meta.get(names_key), list):
            raise UserError(f"{path}: {names_file} has no list {names_key!r}")
        self.class_names = [str(name) for name in meta[names_key]]
        parts, labels = [], []
        for name in [*self.train, self.test]:
            batch = self._unpickle(files, name)
            images, classes = self._check(path / name, batch)
            parts.append(images)
            labels.append(classes)
        self.images = np.concatenate(parts).reshape(-1, *_SHAPE)
        self.labels = np.concatenate(labels)
        self.heldout = np.arange(len(self.images) - len(parts[-1]), len(self.images))

    def _open(self, path: Path) -> dict[str, bytes]:
        """Return the contents of the needed files by name, from the folder or the archive."""
        needed = [*self.train, self.test, self.names[0]]
        for directory in (path, path / self.folder):
            if (directory / needed[0]).exists():
                with name_file_in_errors(directory, f"the folder of {self.name}"):
                    return {name: (directory / name).read_bytes() for name in needed}
        archive = path if path.is_file() else path / self.archive
        if not archive.exists():
            raise UserError(f"{path} holds neither {self.archive} nor {self.folder}/{needed[0]}")
        files: dict[str, bytes] = {}
        with name_file_in_errors(archive, "a tar archive"), tarfile.open(archive) as tar:
            # Nothing is unpacked, so no member can write outside a folder.
            for member in tar:
                name = Path(member.name).name
                if member.isfile() and name in needed and (content := tar.extractfile(member)):
                    files[name] = content.read()
        return files

    def _unpickle(self, files: dict[str, bytes], name: str) -> dict[str, Any]:
        if name not in files:
            raise UserError(f"{self.archive} lacks {name}; is it truncated?")
        with name_file_in_errors(f"{self.folder}/{name}", f"a pickle of {self.name}"):
            # Python 2 wrote the pickles; latin1 preserves the bytes of its strings.
            table = RestrictedUnpickler(io.BytesIO(files[name]), encoding="latin1").load()
            if not isinstance(table, dict):
                raise ValueError(f"it holds a {type(table).__name__}, not a dict")
            return table

    def _check(self, path: Path, batch: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Return a batch's images (N, 3072) and labels (N,). Raises UserError if invalid."""
        images = batch.get("data")
        if (
            not isinstance(images, np.ndarray)
            or images.dtype != np.uint8
            or images.shape[1:] != (np.prod(_SHAPE),)
        ):
            raise UserError(f"{path}: data must be uint8 N×3072")
        labels = batch.get(self.labels_key)
        if not isinstance(labels, list) or len(labels) != len(images):
            raise UserError(
                f"{path}: {self.labels_key} must be a list of {len(images)} labels, one per image"
            )
        classes = range(len(self.class_names))
        if not all(isinstance(label, int) and label in classes for label in labels):
            raise UserError(f"{path}: {self.labels_key} must be from 0 to {classes[-1]}")
        return images, np.array(labels, np.int64)


class Cifar100(Cifar10):
    """50,000 + 10,000 photographs, 32×32, of 100 classes: cifar-100-python.tar.gz or its folder."""

    name = "cifar100"
    torchvision = "CIFAR100"
    archive = "cifar-100-python.tar.gz"
    folder = "cifar-100-python"
    train = ["train"]  # noqa: RUF012
    test = "test"
    labels_key = "fine_labels"
    names = ("meta", "fine_label_names")

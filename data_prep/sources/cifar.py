"""CIFAR-10 and CIFAR-100 in their Python version: pickles, in an archive or unpacked."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from data_prep.sources.base import ArraySource, name_file_in_errors
from data_prep.sources.bounded import open_tar, read_at_most, read_member
from data_prep.sources.pickled import read_pickle
from fedgan_mpi.errors import UserError

_SHAPE = (3, 32, 32)
_MAX_BYTES = 2**28
"""Of one file. The largest original file has 155 MB."""


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
        names = meta.get(names_key)
        self.class_names = [_text(name) for name in names] if isinstance(names, list) else []
        if not self.class_names or not all(isinstance(name, str) for name in self.class_names):
            raise UserError(f"{path}: {names_file} has no list of texts {names_key!r}")
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
                    return {name: read_at_most(directory / name, _MAX_BYTES) for name in needed}
        archive = path if path.is_file() else path / self.archive
        if not archive.exists():
            raise UserError(f"{path} holds neither {self.archive} nor {self.folder}/{needed[0]}")
        files: dict[str, bytes] = {}
        with (
            name_file_in_errors(archive, "a tar archive"),
            open_tar(archive, most_member=_MAX_BYTES, most=8 * _MAX_BYTES) as tar,
        ):
            # Nothing is unpacked, so no member can write outside a folder.
            for member in tar:
                name = Path(member.name).name
                if member.isfile() and name in needed:
                    files[name] = read_member(tar, member, _MAX_BYTES)
        return files

    def _unpickle(self, files: dict[str, bytes], name: str) -> dict[str, Any]:
        if name not in files:
            raise UserError(f"{self.archive} lacks {name}; is it truncated?")
        with name_file_in_errors(f"{self.folder}/{name}", f"a pickle of {self.name}"):
            table = read_pickle(files[name])
            if not isinstance(table, dict):
                raise ValueError(f"it holds a {type(table).__name__}, not a dict")
            # Copies of the original that were read with encoding="bytes" have bytes as keys.
            return {_text(key): value for key, value in table.items()}

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
        if not all(type(label) is int and label in classes for label in labels):
            raise UserError(f"{path}: {self.labels_key} must be from 0 to {classes[-1]}")
        return images, np.array(labels, np.int64)


def _text(value: Any) -> Any:
    return value.decode("latin1") if isinstance(value, bytes) else value


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

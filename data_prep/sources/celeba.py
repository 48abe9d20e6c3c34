"""CelebA's aligned faces, in the layout of its authors and torchvision."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from data_prep.sources.base import Source, find_file, name_file_in_errors
from data_prep.sources.bounded import read_at_most
from data_prep.sources.files import MAX_BYTES, open_files, read_image
from data_prep.sources.image_file import decode_image_file
from fedgan_mpi.errors import UserError

_FOLDERS = ["", "celeba"]
_TRAIN = "0"  # in list_eval_partition.txt; 1 is validation, 2 is test


class CelebA(Source):
    """202,599 faces, 178×218: img_align_celeba/ (or .zip), list_attr_celeba.txt and its split."""

    name = "celeba"
    torchvision = "CelebA"
    default_size = 64
    channels = 3
    class_names: list[str] = []  # noqa: RUF012

    def __init__(self, path: Path) -> None:
        """Read the tables. The official validation and test images are held out."""
        attributes_file = find_file(path, _FOLDERS, "list_attr_celeba.txt")
        self._read_attributes(attributes_file)
        self._read_split(find_file(path, _FOLDERS, "list_eval_partition.txt"), attributes_file)
        try:
            images = find_file(path, _FOLDERS, "img_align_celeba")
        except UserError:
            images = find_file(path, _FOLDERS, "img_align_celeba.zip")
        self._files = open_files(images)
        paths = {PurePosixPath(name).name: name for name in self._files.names()}
        _check_same_images(attributes_file, self._names, images, list(paths))
        self._paths = [paths[name] for name in self._names]

    def _read_attributes(self, path: Path) -> None:
        with name_file_in_errors(path, "CelebA's list of attributes"):
            header, columns, *rows = read_at_most(path, MAX_BYTES).decode("ascii").splitlines()
            self._columns = columns.split()
            announced = int(header)
        self._names, values = [], []
        for number, row in enumerate(rows, start=3):
            name, *signs = row.split() or [""]
            if len(signs) != len(self._columns) or not {"1", "-1"}.issuperset(signs):
                expected = f"a file name and {len(self._columns)} times 1 or -1"
                raise UserError(f"{path}, line {number}: must have {expected}; is it truncated?")
            self._names.append(name)
            values.append(np.array([sign == "1" for sign in signs]))
        if announced != len(rows):
            self.warnings = [f"{path} announces {announced} images, but has {len(rows)} rows"]
        self._values = np.array(values).reshape(len(rows), len(self._columns))

    def _read_split(self, path: Path, attributes_file: Path) -> None:
        with name_file_in_errors(path, "CelebA's official split"):
            lines = read_at_most(path, MAX_BYTES).decode("ascii").splitlines()
            split = dict(line.split() for line in lines)
        _check_same_images(attributes_file, self._names, path, list(split))
        parts = np.array([split[name] for name in self._names])
        if unknown := set(parts.tolist()) - {"0", "1", "2"}:
            raise UserError(f"{path} has the part {min(unknown)!r}, but must have only 0, 1 and 2")
        self.heldout = np.flatnonzero(parts != _TRAIN)

    def __len__(self) -> int:
        return len(self._names)

    @property
    def keys(self) -> Sequence[str]:
        return self._names

    @property
    def attributes(self) -> list[str]:
        return self._columns

    def attribute(self, name: str) -> Sequence[str]:
        if name not in self._columns:
            return super().attribute(name)
        column = self._values[:, self._columns.index(name)]
        return [name if value else f"not {name}" for value in column]

    def image(self, index: int) -> Image.Image:
        return decode_image_file(self._names[index], read_image(self._files, self._paths[index]))


def _check_same_images(first: Path, names: list[str], second: Path, others: list[str]) -> None:
    """Raise UserError if two files list different images."""
    a, b = set(names), set(others)
    for missing, complete, incomplete in ((a - b, first, second), (b - a, second, first)):
        if missing:
            count = f"{len(missing)} image{'s' * (len(missing) > 1)}"
            raise UserError(f"{incomplete} lacks {count} of {complete}, such as {min(missing)}")

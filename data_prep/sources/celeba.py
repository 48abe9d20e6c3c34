"""CelebA's aligned faces, in the layout of its authors, of torchvision or of Kaggle."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from data_prep.sources.base import Picture, Source, name_file_in_errors
from data_prep.sources.files import Files, open_files, read_image
from data_prep.sources.image_file import decode_image_file
from fedgan_mpi.errors import UserError

_IMAGES = "img_align_celeba"
_TRAIN = "0"  # in list_eval_partition; 1 is validation, 2 is test
_PARTS = ("0", "1", "2")


class CelebA(Source):
    """202,599 faces, 178×218: img_align_celeba/ (or .zip), list_attr_celeba.txt and its split."""

    name = "celeba"
    torchvision = "CelebA"
    default_size = 64
    channels = 3
    class_names: list[str] = []  # noqa: RUF012

    def __init__(self, path: Path) -> None:
        """Read the tables, .txt or Kaggle's .csv, from a folder or an archive of it.

        The official validation and test images are held out. Missing images are left out with a
        warning, because subsets of CelebA come with the tables of the full data set.
        """
        files = open_files(path)
        names = files.names()
        attributes = _find_table(files, names, "list_attr_celeba")
        split = _find_table(files, names, "list_eval_partition")
        self._files, paths = _find_images(files, names)
        where = f"{path}/{attributes}"
        self._read_attributes(files, attributes)
        self._keep(where, paths)
        self._read_split(files, split, where)
        self._paths = [paths[name] for name in self._names]

    def _read_attributes(self, files: Files, table: str) -> None:
        where = f"{files.path}/{table}"
        announced = None
        with name_file_in_errors(where, "CelebA's list of attributes"):
            rows = _read_rows(files, table)
            if len(rows) < 2:
                raise ValueError("it has no rows")
            if len(rows[0][1]) == 1:  # the number of images
                announced = int(rows.pop(0)[1][0])
            self._columns = rows.pop(0)[1]
            if table.endswith(".csv"):
                self._columns = self._columns[1:]
        self._names, values = [], []
        for number, row in rows:
            name, *signs = row
            if len(signs) != len(self._columns) or not {"1", "-1"}.issuperset(signs):
                expected = f"a file name and {len(self._columns)} times 1 or -1"
                raise UserError(f"{where}, line {number}: must have {expected}; is it truncated?")
            self._names.append(name)
            values.append(np.array([sign == "1" for sign in signs]))
        if len(set(self._names)) < len(self._names):
            raise UserError(f"{where} names an image twice")
        if announced not in (None, len(rows)):
            self.warnings = [f"{where} announces {announced} images, but has {len(rows)} rows"]
        self._values = np.array(values).reshape(len(rows), len(self._columns))

    def _keep(self, where: str, paths: dict[str, str]) -> None:
        """Keep the rows of images that exist."""
        images = str(self._files.path)
        _check_listed(paths, self._names, where, images)
        kept = [name in paths for name in self._names]
        if not any(kept):
            raise UserError(f"{images} has none of the {len(kept)} images of {where}")
        missing = len(kept) - sum(kept)
        if missing:
            first = self._names[kept.index(False)]
            self.warnings = [
                *self.warnings,
                f"{images} has {sum(kept)} of the {len(kept)} images of {where}; {missing} are "
                f"missing, such as {first}",
            ]
        self._names = [name for name in self._names if name in paths]
        self._values = self._values[np.array(kept)]

    def _read_split(self, files: Files, table: str, attributes: str) -> None:
        where = f"{files.path}/{table}"
        with name_file_in_errors(where, "CelebA's official split"):
            rows = _read_rows(files, table)
            if table.endswith(".csv") and rows:
                rows.pop(0)  # image_id, partition
        split = {}
        for number, row in rows:
            if len(row) != 2:
                raise UserError(f"{where}, line {number}: must have a file name and 0, 1 or 2")
            if row[1] not in _PARTS:
                raise UserError(f"{where} has the part {row[1]!r}, but must have only 0, 1 and 2")
            split[row[0]] = row[1]
        _check_listed(self._names, split, where, attributes)
        parts = np.array([split[name] for name in self._names])
        heldout = np.flatnonzero(parts != _TRAIN)
        if len(heldout) == len(parts):
            raise UserError(f"{where} has no training image among the {len(parts)} that exist")
        # A subset may have training images only. Then a random share is held out.
        self.heldout = heldout if len(heldout) else None

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

    def image(self, index: int) -> Picture:
        return decode_image_file(self._names[index], read_image(self._files, self._paths[index]))


def _find_table(files: Files, names: Sequence[str], stem: str) -> str:
    """Return the name of a table, .txt or .csv, as near to the top as there is one."""
    for suffix in (".txt", ".csv"):
        found = [name for name in names if PurePosixPath(name).name == stem + suffix]
        if found:
            return min(found, key=lambda name: name.count("/"))
    raise UserError(f"{files.path} has no {stem}.txt and no {stem}.csv")


def _find_images(files: Files, names: Sequence[str]) -> tuple[Files, dict[str, str]]:
    """Return the folder or archive with the images, and file name -> path of each."""
    found = [name for name in names if _IMAGES in PurePosixPath(name).parent.parts]
    if not found:
        packed = [name for name in names if PurePosixPath(name).name == f"{_IMAGES}.zip"]
        if not packed or not files.path.is_dir():
            raise UserError(f"{files.path} has neither {_IMAGES}/ nor {_IMAGES}.zip")
        files = open_files(files.path / packed[0])
        found = files.names()
    return files, {PurePosixPath(name).name: name for name in found}


def _read_rows(files: Files, table: str) -> list[tuple[int, list[str]]]:
    """Return the number and the columns of each line that is not blank."""
    lines = files.read(table).decode("utf-8-sig").splitlines()
    rows = csv.reader(io.StringIO("\n".join(lines))) if table.endswith(".csv") else None
    split = [line.split() for line in lines] if rows is None else list(rows)
    return [(number, row) for number, row in enumerate(split, start=1) if row]


def _check_listed(
    names: Iterable[str], listed: Iterable[str], incomplete: str, complete: str
) -> None:
    """Raise UserError if a file does not list all images of another."""
    if missing := set(names) - set(listed):
        count = f"{len(missing)} image{'s' * (len(missing) > 1)}"
        raise UserError(f"{incomplete} lacks {count} of {complete}, such as {min(missing)}")

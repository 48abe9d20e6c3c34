"""RSNA Pneumonia Detection, stage 2, in Kaggle's layout."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from data_prep.sources.base import Picture, Source, name_file_in_errors
from data_prep.sources.dicom import decode_dicom, range_of_dicom, read_tag
from data_prep.sources.files import Files, open_files, read_image
from fedgan_mpi.errors import UserError

_FOLDER = "stage_2_train_images"
_LABELS = "stage_2_train_labels.csv"
_DETAILS = "stage_2_detailed_class_info.csv"
_EXTENSIONS = (".dcm", ".dicom")
_CLASSES = ["Normal", "No Lung Opacity / Not Normal", "Lung Opacity"]
_TAGS = {"view": "ViewPosition", "sex": "PatientSex"}


class Rsna(Source):
    """26,684 chest X-rays, 1024×1024 DICOM: stage_2_train_images/, its .csv, or Kaggle's .zip."""

    name = "rsna"
    default_size = 64
    channels = 1
    reads_pictures = True

    def __init__(self, path: Path) -> None:
        """Read the tables. The classes are the three detailed ones if their file exists.

        Without that file, the classes are normal and pneumonia.
        """
        tables = self._files = open_files(path)
        names = tables.names()
        labels_file = _find_table(names, _LABELS)
        details_file = _find_table(names, _DETAILS)
        if labels_file is None:
            raise UserError(f"{path} has no {_LABELS}")
        targets = _read_column(tables, labels_file, "Target")
        if unknown := set(targets.values()) - {"0", "1"}:
            raise UserError(
                f"{path}/{_LABELS} has the Target {min(unknown)!r}, but must have 0 or 1"
            )
        self._patients = sorted(targets)
        self._paths = self._find_images(names)
        self._check_images(path)
        if details_file is not None:
            details = _read_column(tables, details_file, "class")
            self._check_details(path, targets, details)
            self.class_names = _CLASSES
            labels = [_CLASSES.index(details[patient]) for patient in self._patients]
        else:
            self.class_names = ["no pneumonia", "pneumonia"]
            labels = [int(targets[patient]) for patient in self._patients]
        self.labels = np.array(labels, np.int64)

    def _find_images(self, names: Sequence[str]) -> dict[str, str]:
        """Return patient -> path of the images, at any depth below their folder or their zip."""
        found = [name for name in names if _FOLDER in PurePosixPath(name).parent.parts]
        packed = [name for name in names if PurePosixPath(name).name == f"{_FOLDER}.zip"]
        if not found and packed and self._files.path.is_dir():
            self._files = open_files(self._files.path / packed[0])
            found = self._files.names()
        patients = set(self._patients)
        paths = {}
        for name in found:
            image = PurePosixPath(name)
            if image.name in patients:  # without an extension
                paths[image.name] = name
            elif image.suffix.lower() in _EXTENSIONS:
                paths[image.stem] = name
        return paths

    def _check_images(self, path: Path) -> None:
        """Raise UserError if the images and the table have different patients."""
        images = set(self._paths)
        for missing, problem in (
            (set(self._patients) - images, f"{path}/{_FOLDER} lacks the image"),
            (images - set(self._patients), f"{path}/{_LABELS} lacks the label"),
        ):
            if missing:
                raise UserError(f"{problem} of {len(missing)} patients, such as {min(missing)}")

    def _check_details(self, path: Path, targets: dict[str, str], details: dict[str, str]) -> None:
        """Raise UserError if a patient's detailed class is unknown or contradicts the Target."""
        for patient, target in targets.items():
            detail = details.get(patient)
            if detail not in _CLASSES:
                known = ", ".join(_CLASSES)
                raise UserError(
                    f"{path}/{_DETAILS} gives patient {patient} the class {detail!r}; "
                    f"it must be one of {known}"
                )
            if (detail == "Lung Opacity") != (target == "1"):
                raise UserError(
                    f"{path}: patient {patient} has Target {target} in {_LABELS}, but is "
                    f"{detail!r} in {_DETAILS}"
                )

    def __len__(self) -> int:
        return len(self._patients)

    @property
    def keys(self) -> Sequence[str]:
        return self._patients

    @property
    def attributes(self) -> list[str]:
        return list(_TAGS)

    def attribute(self, name: str) -> Sequence[str]:
        if name not in _TAGS:
            return super().attribute(name)
        values = []
        for index in range(len(self)):
            with name_file_in_errors(self._files.path / self._file(index), "a DICOM file"):
                values.append(read_tag(self._files.read(self._file(index)), _TAGS[name]))
        return values

    def image(self, index: int) -> Picture:
        name = self._file(index)
        return decode_dicom(name, read_image(self._files, name), self.pictures)

    def value_range(self, index: int) -> tuple[float, float] | None:
        return range_of_dicom(self._files.read(self._file(index)))

    def _file(self, index: int) -> str:
        return self._paths[self._patients[index]]


def _find_table(names: Sequence[str], table: str) -> str | None:
    """Return the path of a table, as near to the top as there is one."""
    found = [name for name in names if PurePosixPath(name).name == table]
    return min(found, key=lambda name: name.count("/"), default=None)


def _read_column(files: Files, name: str, column: str) -> dict[str, str]:
    """Read one column of a table, as a dict from patient to value.

    A patient has one row per bounding box. Raises UserError if the rows of a patient differ.
    """
    values: dict[str, str] = {}
    with name_file_in_errors(f"{files.path}/{name}", "a table"):
        rows = csv.DictReader(io.StringIO(files.read(name).decode("utf-8-sig")))
        if not {"patientId", column}.issubset(rows.fieldnames or ()):
            raise UserError(f"{files.path}/{name} must have the columns patientId and {column}")
        for row in rows:
            patient, value = row["patientId"], row[column]
            if values.setdefault(patient, value) != value:
                raise UserError(
                    f"{files.path}/{name} gives patient {patient} both {column} "
                    f"{values[patient]!r} and {value!r}"
                )
    return values

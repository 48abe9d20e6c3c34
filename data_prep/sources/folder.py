"""A folder tree of image files, with folders as classes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from data_prep.pictures.formats import EXTENSIONS, START_BYTES, describe, is_picture
from data_prep.sources import leftovers
from data_prep.sources.base import Picture, Source, reason_of
from data_prep.sources.files import Files, open_files, read_image
from data_prep.sources.image_file import decode_image_file, range_of_image_file
from data_prep.sources.splits import find_splits
from fedgan_mpi.errors import UserError


class ImageFolder(Source):
    """Any folder (or .zip) of images; an image's folder is its class."""

    name = "imagefolder"
    default_size = 64
    channels = 3
    reads_pictures = True

    def __init__(self, path: Path, *, splits: Literal["auto", "ignore"] = "auto") -> None:
        """splits: auto holds out the images below folders such as val and test beside train."""
        self._files = open_files(path)
        self._names, self.rejected, left_out = find_images(self._files)
        self.warnings = leftovers.describe(self._files.left_out + left_out)
        if not self._names:
            raise UserError(f"{path} holds no images")
        parents = [PurePosixPath(name).parent.parts for name in self._names]
        if splits == "auto":
            parents = self._hold_out(path, parents)
        folders = ["/".join(parts) or "." for parts in parents]
        self.class_names = [] if set(folders) == {"."} else sorted(set(folders))
        if "." in self.class_names:
            stray = self._names[folders.index(".")]
            raise UserError(f"{path}: {stray} is outside the class folders; move it into one")
        if self.class_names:
            numbers = {name: number for number, name in enumerate(self.class_names)}
            self.labels = np.array([numbers[folder] for folder in folders], np.int64)
            # Names that are not UTF-8 cannot be printed.
            self.class_names = [
                os.fsencode(name).decode("utf-8", "backslashreplace") for name in self.class_names
            ]

    def _hold_out(self, path: Path, parents: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
        """Hold out the images of val and test, and return the folders that are classes."""
        try:
            found = find_splits(parents)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        if found.heldout:
            self.heldout = np.array(found.heldout, np.int64)
            parts = ", ".join(sorted(found.parts))
            self.warnings = [
                *self.warnings,
                f"held out: the {len(found.heldout):,} images in {parts}",
            ]
        return found.folders

    def __len__(self) -> int:
        return len(self._names)

    @property
    def keys(self) -> Sequence[str]:
        return self._names

    def image(self, index: int) -> Picture:
        name = self._names[index]
        return decode_image_file(name, read_image(self._files, name), self.pictures)

    def value_range(self, index: int) -> tuple[float, float] | None:
        name = self._names[index]
        return range_of_image_file(name, self._files.read(name))


def find_images(files: Files) -> tuple[list[str], list[str], Counter[str]]:
    """Return the images, the files that are no images with reasons, and the documents by name.

    A file is opened only if its name does not identify its type.
    """
    images: list[str] = []
    rejected: list[str] = []
    documents: Counter[str] = Counter()
    names = files.names()
    known = {name for name in names if PurePosixPath(name).suffix.lower() in EXTENSIONS}
    named = known | {str(PurePosixPath(name).with_suffix("")) for name in known}
    for name in names:
        if name in known:
            images.append(name)
        elif leftovers.is_document(name):
            documents[PurePosixPath(name).name] += 1
        elif leftovers.is_sidecar(name, named):
            documents[f"*{PurePosixPath(name).suffix} beside images"] += 1
        else:
            try:
                start = files.read_start(name, START_BYTES)
            except Exception as error:  # zipfile's errors have no common type
                rejected.append(f"{name}: {reason_of(error)}")
                continue
            if is_picture(start):
                images.append(name)
            else:
                rejected.append(f"{name}: {describe(start)}")
    return images, rejected, documents
